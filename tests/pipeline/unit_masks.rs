//! Masks of heads and neurons as files and beside one another: they survive writing, broken ones are refused with what is
//! wrong with them, and the units that several share are counted.

use proptest::prelude::*;
use secateur::Error;
use secateur::prune::cost::{CostModel, LayerWidths};
use secateur::prune::masks::UnitMasks;
use secateur::prune::overlap::overlap;

use crate::support::numbers::Random;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn masks_survive_their_file(seed: u64) {
        let mut random = Random(seed);
        let mut layers = |limit: usize| -> Vec<Vec<f32>> {
            (0..3).map(|_| (0..random.below(limit)).map(|_| [0.0, 1.0, random.normal() as f32][random.below(3)]).collect()).collect()
        };
        let masks = UnitMasks { heads: layers(6), neurons: layers(40) };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("masks.json");
        masks.write(&path).unwrap();
        prop_assert_eq!(UnitMasks::read(&path).unwrap(), masks);
    }
}

#[test]
fn unusable_masks_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("masks.json");
    for (text, complaint) in [
        ("{\"heads\": [[1, 1e40]], \"neurons\": [[1]]}", "number out of range at line 1 column 19"),
        ("{\"heads\": [[1]], \"neurons\": []}", "1 layers of heads, 0 layers of neurons"),
        ("{\"heads\": [[null]], \"neurons\": [[1]]}", "not a masks file"),
        ("[1, 2]", "not a masks file"),
        ("", "not a masks file"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = UnitMasks::read(&path).unwrap_err().to_string();
        assert!(error.contains(complaint), "{text}: {error}");
    }
    assert!(matches!(UnitMasks::read(&folder.path().join("absent.json")), Err(Error::Io { .. })));
    let nan = UnitMasks { heads: vec![vec![f32::NAN]], neurons: vec![vec![1.0]] };
    assert!(matches!(nan.write(&folder.path().join("nan.json")), Err(Error::NotFinite { .. })));
    assert!(!folder.path().join("nan.json").exists());
    let cost = CostModel::new(768, 64, 20.0, vec![LayerWidths { heads: 12, neurons: 3072 }; 12]).unwrap();
    let narrow = UnitMasks { heads: vec![vec![1.0; 12]; 12], neurons: vec![vec![1.0; 3071]; 12] };
    assert!(
        cost.record(0.5, &narrow).unwrap_err().to_string().contains("layer 0 has 12 heads and 3071 neurons")
    );
}

#[test]
fn overlap_counts_shared_units() {
    let mask = |heads: [f32; 4], neurons: [f32; 3]| UnitMasks {
        heads: vec![heads[..2].to_vec(), heads[2..].to_vec()],
        neurons: vec![neurons.to_vec(), vec![]],
    };
    let a = mask([1.0, 1.0, 0.0, 1.0], [0.0; 3]);
    let b = mask([1.0, 0.0, 0.0, 0.5], [1.0, 0.0, 1.0]);
    let (heads, neurons) = overlap(&[&a, &b]).unwrap();
    assert_eq!(heads.shared, [[1.0, 2.0 / 3.0], [1.0, 1.0]]);
    assert_eq!(heads.shared_by_layer[0], [[1.0, 0.5], [1.0, 1.0]]);
    assert_eq!((heads.kept_by_all, heads.kept_by_any), (2, 3));
    assert_eq!(neurons.shared, [[1.0, 1.0], [0.0, 1.0]]);
    assert_eq!((neurons.kept_by_all, neurons.kept_by_any), (0, 2));
    assert!(matches!(overlap(&[&a]), Err(Error::Usage(_))));
    let other = UnitMasks { heads: vec![vec![1.0]; 2], ..a.clone() };
    assert!(matches!(overlap(&[&a, &other]), Err(Error::Shape { .. })));
}
