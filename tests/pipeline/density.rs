//! Tables and figures of kept weights say what a plain count says.

use secateur::model::{Family, Head, MatrixKind, Model, WeightMask, WeightMasks};
use secateur::report::density::{self, Density};

use crate::tiny;

/// Masks that keep only head 1 of layer 0, half of everything of layer 1.
fn masks(model: &Model, family: Family) -> WeightMasks {
    let architecture = &model.architecture;
    let mask = |matrix: &secateur::model::LayerMatrix| {
        let parameter = architecture.layout.get(matrix.id);
        let (rows, cols) = (parameter.rows, parameter.cols);
        let name = architecture.mask_name(matrix.id);
        // Four heads of size 4. What leads into heads has them along its outputs, what leads out along its inputs; GPT-2
        // stores [in, out].
        let of_attention = !matches!(matrix.kind, MatrixKind::Up | MatrixKind::Down);
        let leads_out = matrix.kind == MatrixKind::AttentionOutput;
        let by_row = (family == Family::Gpt2) == leads_out;
        WeightMask::from_fn(name, rows, cols, |index| {
            let along = if by_row { index / cols } else { index % cols };
            match (matrix.layer, of_attention) {
                (0, true) => along / 4 % 4 == 1,
                (0, false) => false,
                _ => index % 2 == 0,
            }
        })
    };
    WeightMasks { matrices: architecture.layer_matrices().iter().map(mask).collect() }
}

#[test]
fn heads_are_counted_where_each_family_keeps_them() {
    for family in Family::ALL {
        let model = Model::from_config(tiny::config(family), Head::Backbone, 1).unwrap();
        let density = Density::of("a", &model.architecture, &masks(&model, family));
        assert_eq!(density.heads(0), [0.0, 1.0, 0.0, 0.0], "{family:?}");
        assert_eq!(density.heads(1), [0.5; 4], "{family:?}");
        assert_eq!(density.layer(1, None), Some(0.5));
        // 4·16² of attention, a quarter of them kept, and 2·16·24 of the feed-forward network.
        assert_eq!(density.layer(0, None), Some(256.0 / 1792.0));
        assert_eq!(density.kept(), (256.0 + 896.0) / 3584.0);
    }
}

#[test]
fn figures_hold_every_number_and_no_markup_from_outside() {
    let model = Model::from_config(tiny::config(Family::Bert), Head::Backbone, 1).unwrap();
    let some = Density::of("<b>", &model.architecture, &masks(&model, Family::Bert));
    let all = Density::of("all", &model.architecture, &WeightMasks::default());
    assert_eq!(all.kept(), 1.0);
    let text = density::text(&[some.clone(), all.clone()], false);
    assert!(text.contains("32.14 %") && text.contains("0.0 100.0 0.0 0.0"), "{text}");
    let svg = density::svg(&[some.clone(), all.clone()]);
    assert!(svg.starts_with("<svg xmlns=") && !svg.contains("<b>"), "{svg}");
    assert!(svg.contains("layer 1 head 2: 100.00 %") && svg.contains("layer 2 key: 50.00 %"));
    let page = density::html("a & b", &[some, all.clone()]);
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("a &amp; b") && !page.contains("<b>"));
    // Ten colours for ten models.
    let ten = density::html("ten", &vec![all; 10]);
    let legend = ten.split("<p class=\"legend\">").nth(1).unwrap().split("</p>").next().unwrap();
    let mut colours: Vec<&str> =
        legend.split("<i class=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert_eq!(colours.len(), 10, "{legend}");
    colours.sort_unstable();
    colours.dedup();
    assert_eq!(colours.len(), 10, "{colours:?}");
}
