//! One-instruction programs: every row of a table is one lane of a kernel that loads operands, executes the instruction
//! and stores the result. Expected values are written out, or come from a formula that shares no code with the crate.

mod arithmetic;
mod control;
mod conversion;
mod floating;
mod lanes;
mod memory;
mod tensor;

use ptxsim::{Approximations, Argument, Checks, Machine, Module, Options};

pub(crate) const HEADER: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";

/// Register kinds in a signature: result, colon, operands.
fn declaration(kind: char) -> (&'static str, &'static str) {
    match kind {
        'r' => (".b32", "b32"),
        'l' => (".b64", "b64"),
        'h' => (".b16", "b16"),
        'f' => (".f32", "f32"),
        'd' => (".f64", "f64"),
        'p' => (".pred", "pred"),
        _ => panic!("unknown register kind {kind}"),
    }
}

/// The text of a kernel that executes `instruction` once. Operands are named a, b, c, e; the result is d. A predicate
/// operand is the lowest bit of its word; a predicate result is stored as 0 or 1.
pub fn program(instruction: &str, signature: &str) -> String {
    let (result, operands) = signature.split_once(':').expect("a signature has a colon");
    let result = result.chars().next().expect("a result kind");
    let mut text = format!(
        "{HEADER}.visible .entry test(.param .u64 in, .param .u64 out)\n{{\n.reg .b64 %rd<8>; .reg .b32 %r<8>; .reg .pred %p<2>;\n"
    );
    text += "ld.param.u64 %rd1, [in]; ld.param.u64 %rd2, [out]; mov.u32 %r1, %tid.x;\n";
    text += "mul.wide.u32 %rd3, %r1, 32; add.s64 %rd1, %rd1, %rd3; mul.wide.u32 %rd3, %r1, 8; add.s64 %rd2, %rd2, %rd3;\n";
    text += &format!(".reg {} d;\n", declaration(result).0);
    for (i, (kind, name)) in operands.chars().zip(["a", "b", "c", "e"]).enumerate() {
        let (register, ty) = declaration(kind);
        text += &format!(".reg {register} {name};\n");
        text += &if kind == 'p' {
            format!("ld.global.u32 %r2, [%rd1+{}]; setp.ne.u32 {name}, %r2, 0;\n", 8 * i)
        } else {
            format!("ld.global.{ty} {name}, [%rd1+{}];\n", 8 * i)
        };
    }
    text += instruction;
    text += &match result {
        'p' => "\nselp.u32 %r3, 1, 0, d; st.global.u32 [%rd2], %r3;\nret;\n}\n".to_string(),
        kind => format!("\nst.global.{} [%rd2], d;\nret;\n}}\n", declaration(kind).1),
    };
    text
}

/// Executes the instruction on up to 32 rows of operand bits at once.
pub fn evaluate(instruction: &str, signature: &str, rows: &[Vec<u64>]) -> Vec<u64> {
    evaluate_with(instruction, signature, rows, Approximations::Rounded)
}

/// The same with approximate instructions at an end of their bounds.
pub fn evaluate_with(
    instruction: &str,
    signature: &str,
    rows: &[Vec<u64>],
    approximations: Approximations,
) -> Vec<u64> {
    assert!(rows.len() <= 32 && !rows.is_empty());
    let text = program(instruction, signature);
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let mut machine = Machine::new(Options { checks: Checks::all(), approximations, ..Options::default() });
    let (input, output) = (machine.allocate(32 * 32, "in"), machine.allocate(32 * 8, "out"));
    machine.fill(input, 32 * 32, 0).unwrap();
    machine.fill(output, 32 * 8, 0).unwrap();
    for lane in 0..32 {
        let row = rows.get(lane).unwrap_or(&rows[0]);
        let bytes: Vec<u8> = row.iter().flat_map(|v| v.to_le_bytes()).collect();
        machine.write(input + 32 * lane as u64, &bytes).unwrap();
    }
    let arguments = [Argument::U64(input), Argument::U64(output)];
    let report = machine.launch(&module, "test", [1; 3], [32, 1, 1], 0, &arguments).unwrap();
    assert!(report.findings.is_empty(), "{instruction}: {:?}", report.findings);
    let bytes = machine.read(output, 32 * 8).unwrap();
    bytes.chunks(8).take(rows.len()).map(|b| u64::from_le_bytes(b.try_into().unwrap())).collect()
}

/// Compares with expected bits, row by row.
pub fn expect(instruction: &str, signature: &str, rows: &[(&[u64], u64)]) {
    let inputs: Vec<Vec<u64>> = rows.iter().map(|(row, _)| row.to_vec()).collect();
    let got = evaluate(instruction, signature, &inputs);
    for ((row, want), got) in rows.iter().zip(got) {
        assert_eq!(got, *want, "{instruction} on {row:x?}: got {got:#x}, want {want:#x}");
    }
}

/// Bits of an f32.
pub fn f(x: f32) -> u64 {
    x.to_bits().into()
}

/// Bits of an f64.
pub fn d(x: f64) -> u64 {
    x.to_bits()
}

/// Pseudo-random bits for formulas on many operands.
pub struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// An f32 of any exponent, specials now and then.
    pub fn single(&mut self) -> f32 {
        const SPECIAL: [f32; 8] =
            [0.0, -0.0, 1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MIN_POSITIVE, f32::MAX];
        let bits = self.bits();
        if bits >> 60 == 0 { SPECIAL[(bits % 8) as usize] } else { f32::from_bits(bits as u32) }
    }

    /// An f32 near 1, so that sums and products do not vanish.
    pub fn moderate(&mut self) -> f32 {
        let bits = self.bits();
        let exponent = 117 + (bits >> 32) as u32 % 20;
        f32::from_bits((bits as u32 & 0x807f_ffff) | exponent << 23)
    }
}

/// Compares with a formula on random operands.
pub fn expect_formula(
    instruction: &str,
    signature: &str,
    mut operands: impl FnMut(&mut Random) -> Vec<u64>,
    formula: impl Fn(&[u64]) -> u64,
) {
    let mut random = Random::new(instruction.len() as u64);
    for _ in 0..8 {
        let rows: Vec<Vec<u64>> = (0..32).map(|_| operands(&mut random)).collect();
        for (row, got) in rows.iter().zip(evaluate(instruction, signature, &rows)) {
            let want = formula(row);
            assert_eq!(got, want, "{instruction} on {row:x?}: got {got:#x}, want {want:#x}");
        }
    }
}
