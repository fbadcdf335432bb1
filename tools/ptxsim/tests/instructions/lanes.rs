//! Operations between the lanes of a warp.

use crate::evaluate;

const ALL: u64 = 0xffff_ffff;

/// Runs with operand a = lane + 100 and given b, c in all lanes.
fn shuffle(mode: &str, b: u64, c: u64) -> Vec<(u64, u64)> {
    let rows: Vec<Vec<u64>> = (0..32).map(|lane| vec![lane + 100, b, c]).collect();
    let value = evaluate(&format!("shfl.sync.{mode}.b32 d, a, b, c, 0xffffffff;"), "r:rrr", &rows);
    let inside = evaluate(
        &format!("{{ .reg .b32 v; shfl.sync.{mode}.b32 v|d, a, b, c, 0xffffffff; }}"),
        "p:rrr",
        &rows,
    );
    value.into_iter().zip(inside).collect()
}

#[test]
fn shuffles() {
    for (lane, got) in shuffle("up", 3, 0).into_iter().enumerate() {
        assert_eq!(got, if lane >= 3 { (lane as u64 + 97, 1) } else { (lane as u64 + 100, 0) });
    }
    for (lane, got) in shuffle("down", 5, 0x1f).into_iter().enumerate() {
        assert_eq!(got, if lane < 27 { (lane as u64 + 105, 1) } else { (lane as u64 + 100, 0) });
    }
    for (lane, got) in shuffle("bfly", 17, 0x1f).into_iter().enumerate() {
        assert_eq!(got, ((lane as u64 ^ 17) + 100, 1));
    }
    for got in shuffle("idx", 9, 0x1f).into_iter() {
        assert_eq!(got, (109, 1));
    }
}

#[test]
fn shuffles_in_segments() {
    // Width 8, as `__shfl_*_sync(…, 8)` encodes it: segment mask 0x18 in bits 8..13, clamp 7.
    let c = 0x181f & !0x18 | 0x18 << 8;
    for (lane, got) in shuffle("down", 2, c).into_iter().enumerate() {
        assert_eq!(got, if lane % 8 < 6 { (lane as u64 + 102, 1) } else { (lane as u64 + 100, 0) });
    }
    for (lane, got) in shuffle("idx", 3, c).into_iter().enumerate() {
        assert_eq!(got, (100 + (lane as u64 & !7) + 3, 1));
    }
    for (lane, got) in shuffle("up", 1, 0x18 << 8).into_iter().enumerate() {
        assert_eq!(got, if lane % 8 > 0 { (lane as u64 + 99, 1) } else { (lane as u64 + 100, 0) });
    }
    for (lane, got) in shuffle("bfly", 4, c).into_iter().enumerate() {
        assert_eq!(got, ((lane as u64 ^ 4) + 100, 1));
    }
}

#[test]
fn votes() {
    let rows: Vec<Vec<u64>> = (0..32).map(|lane| vec![u64::from(lane % 3 == 0)]).collect();
    let ballot: u64 = (0..32).filter(|l| l % 3 == 0).map(|l| 1 << l).sum();
    let same = |instruction: &str, signature: &str, want: u64| {
        assert!(evaluate(instruction, signature, &rows).iter().all(|&v| v == want), "{instruction}");
    };
    same("vote.sync.ballot.b32 d, a, 0xffffffff;", "r:p", ballot);
    same("vote.sync.any.pred d, a, 0xffffffff;", "p:p", 1);
    same("vote.sync.all.pred d, a, 0xffffffff;", "p:p", 0);
    same("vote.sync.all.pred d, !a, 0xffffffff;", "p:p", 0);
    same("vote.sync.uni.pred d, a, 0xffffffff;", "p:p", 0);
    same("activemask.b32 d;", "r:p", ALL);
}

#[test]
fn reductions_and_matches() {
    let rows: Vec<Vec<u64>> = (0..32u64).map(|lane| vec![(lane * 7 + 3) & 0xf | (lane << 31)]).collect();
    let values: Vec<u32> = rows.iter().map(|r| r[0] as u32).collect();
    let same = |instruction: &str, want: u32| {
        assert!(evaluate(instruction, "r:r", &rows).iter().all(|&v| v == u64::from(want)), "{instruction}");
    };
    same("redux.sync.add.u32 d, a, 0xffffffff;", values.iter().fold(0, |s, v| s.wrapping_add(*v)));
    same("redux.sync.max.s32 d, a, 0xffffffff;", values.iter().map(|&v| v as i32).max().unwrap() as u32);
    same("redux.sync.min.u32 d, a, 0xffffffff;", *values.iter().min().unwrap());
    same("redux.sync.xor.b32 d, a, 0xffffffff;", values.iter().fold(0, |s, v| s ^ v));
    let got = evaluate("match.any.sync.b32 d, a, 0xffffffff;", "r:r", &rows);
    for (lane, mask) in got.into_iter().enumerate() {
        let want: u64 = (0..32).filter(|&l| values[l] == values[lane]).map(|l| 1u64 << l).sum();
        assert_eq!(mask, want);
    }
    assert!(evaluate("match.all.sync.b32 d, a, 0xffffffff;", "r:r", &rows).iter().all(|&v| v == 0));
}
