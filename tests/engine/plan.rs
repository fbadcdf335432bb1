//! Memory plans: what is alive at the same time never overlaps, whatever the program.

use secateur::model::{Architecture, EmitOptions, Head};
use secateur::program::{Access, Buffer, Element, Extents, Mode, Plan, Program, Storage};

use crate::models::{self, FAMILIES};

fn check(program: &Program, capacity: Extents) {
    let plan = Plan::new(program, capacity);
    let mut lives = std::collections::BTreeMap::new();
    for (index, op) in program.ops().iter().enumerate() {
        op.visit(|slot, _| {
            let root = program.root(slot);
            let last = if program.slot(root).storage == Storage::Output { usize::MAX } else { index };
            let life = lives.entry(root).or_insert((index, last));
            life.1 = life.1.max(last);
        });
    }
    let arena: Vec<_> = lives
        .iter()
        .filter(|(slot, _)| plan.place(**slot).buffer == Buffer::Arena)
        .map(|(slot, life)| {
            let place = plan.place(*slot);
            let description = program.slot(*slot);
            assert_eq!(description.element, Element::Float);
            (place.offset, place.offset + capacity.of(description.rows) * place.ld, *life, &description.name)
        })
        .collect();
    let mut peak = 0;
    for (i, a) in arena.iter().enumerate() {
        peak = peak.max(a.1);
        for b in &arena[i + 1..] {
            let together = a.2.0 <= b.2.1 && b.2.0 <= a.2.1;
            let apart = a.1 <= b.0 || b.1 <= a.0;
            assert!(!together || apart, "{} and {} share memory while both are alive", a.3, b.3);
        }
    }
    assert!(peak <= plan.arena_len && plan.arena_len < peak + 64, "{peak} of {}", plan.arena_len);
    // A plan that reuses nothing would be the sum of all slots; backward programs reuse a good part.
    let sum: usize = arena.iter().map(|slot| slot.1 - slot.0).sum();
    assert!(program.forward_ops().len() == program.ops().len() || plan.arena_len < sum);
}

#[test]
fn slots_alive_together_do_not_overlap() {
    for family in FAMILIES {
        let architecture = Architecture::new(models::config(family, 0.1), Head::Span).expect("declares");
        let capacity = Extents { tokens: 33, sequences: 7, targets: 0, samples: 0, longest: 20 };
        for mode in [Mode::EVALUATE, Mode::TRAIN] {
            let options = EmitOptions { loss: true, ..EmitOptions::default() };
            check(&architecture.emit(mode, &options).expect("emits").program, capacity);
        }
    }
}

#[test]
fn every_trained_parameter_is_written_by_the_gradient_operations_of_its_uses() {
    for family in FAMILIES {
        let causal = matches!(family, "gpt2" | "opt");
        let language_model = if causal { Head::CausalLm } else { Head::MaskedLm };
        for head in [Head::Classification { labels: 3 }, Head::Span, language_model] {
            let architecture = Architecture::new(models::config(family, 0.1), head).expect("declares");
            let options = EmitOptions { loss: true, ..EmitOptions::default() };
            let program = architecture.emit(Mode::TRAIN, &options).expect("emits").program;
            for (id, parameter) in architecture.layout.iter() {
                let (mut uses, mut writers) = (0, 0);
                for (index, op) in program.ops().iter().enumerate() {
                    op.visit(|slot, access| match program.slot(slot).storage {
                        Storage::Parameter(p) if p == id && index < program.forward_ops().len() => uses += 1,
                        Storage::Gradient(p) if p == id => {
                            assert_eq!(access, Access::Update, "{} is overwritten", parameter.name);
                            writers += 1;
                        }
                        _ => {}
                    });
                }
                assert!(uses > 0, "{family} {head:?}: {} is never used", parameter.name);
                assert_eq!(writers, uses, "{family} {head:?}: gradient of {}", parameter.name);
            }
        }
    }
}

#[test]
fn frozen_parameters_get_no_gradient_operation() {
    let head = Head::Classification { labels: 2 };
    let mut architecture = Architecture::new(models::config("bert", 0.0), head).expect("declares");
    architecture.set_trainable(|name| name.starts_with("classifier"));
    let options = EmitOptions { loss: true, ..EmitOptions::default() };
    let program = architecture.emit(Mode::TRAIN, &options).expect("emits").program;
    let gradients = program.slots().filter(|(_, slot)| matches!(slot.storage, Storage::Gradient(_))).count();
    assert_eq!(gradients, 2);
    // Nothing flows below the classifier.
    assert!(!program.ops().iter().any(|op| op.name() == "attention_backward"));
}
