//! Heads of label words: a class is answered as the language model would answer its word.

use secateur::data::{Example, Target};
use secateur::model::{EmitOptions, Head, HeadRequest, LabelWordHead, Logits, Model};
use secateur::program::Mode;
use secateur::session::{Device, Session, Weighting};

use crate::models;
use crate::runs::CLASSES;

#[test]
fn label_words_answer_as_the_language_model_does() {
    let words = [7u32, 30, 12];
    for family in ["bert", "roberta", "distilbert", "gpt2"] {
        let causal = family == "gpt2";
        let language = if causal { Head::CausalLm } else { Head::MaskedLm };
        let folder = tempfile::tempdir().expect("a folder");
        models::model(family, language, 0.0).save(folder.path()).expect("saved");
        let examples: Vec<Example> = models::examples(family, CLASSES, 6, 3)
            .into_iter()
            .map(|example| Example { target: Target::None, ..example })
            .collect();
        let batch = models::batch(&examples);
        let logits = |model: Model| {
            let mut session = Session::new(model, Device::Cpu).expect("a session");
            let emit = EmitOptions { logits: Logits::All, ..EmitOptions::default() };
            let prepared =
                session.prepare(Mode::EVALUATE, &emit, models::capacity(&batch)).expect("prepared");
            let extents = session.feed(&prepared, &batch, Weighting::EachRow).expect("fed");
            session.run(&prepared, &extents).expect("ran");
            let mut values = Vec::new();
            session
                .read(&prepared, prepared.slots.logits.expect("logits"), &extents, &mut values)
                .expect("read");
            values
        };
        let load =
            |head, words: &[u32], mask| Model::load_with_label_words(folder.path(), head, words, mask, 0);
        let request = HeadRequest::Task(language);
        let all = logits(Model::load(folder.path(), request, 0).expect("loads"));
        let close = |found: f32, token: usize, word: u32, place: &str| {
            let expected = all[token * 50 + word as usize];
            assert!(
                (found - expected).abs() <= 1e-4 * expected.abs().max(1.0),
                "{family} {place}: {found}, {expected}"
            );
        };
        let classes = Head::Classification { labels: 3 };
        let (model, kind) = load(classes, &words, None).expect("loads");
        assert_eq!(kind, LabelWordHead::LanguageModel);
        for (row, found) in logits(model).chunks(3).enumerate() {
            let token = if causal { batch.cu_seqlens[row + 1] - 1 } else { batch.cu_seqlens[row] };
            found.iter().zip(words).for_each(|(&found, word)| close(found, token as usize, word, "class"));
        }
        // A token that stands somewhere in a row answers for it.
        assert!(batch.cu_seqlens[5] - batch.cu_seqlens[4] > 1, "row 4 needs a second token");
        let mask = batch.input_ids[batch.cu_seqlens[4] as usize + 1] as u32;
        let (model, _) = load(classes, &words, Some(mask)).expect("loads");
        let tokens = batch.cu_seqlens[4]..batch.cu_seqlens[5];
        let at = tokens.clone().find(|&t| batch.input_ids[t as usize] as u32 == mask).expect("it is there");
        logits(model)[12..15]
            .iter()
            .zip(words)
            .for_each(|(&found, word)| close(found, at as usize, word, "mask"));
        let (model, _) = load(Head::Span, &words[..2], None).expect("loads");
        for (token, found) in logits(model).chunks(2).enumerate() {
            found.iter().zip(words).for_each(|(&found, word)| close(found, token, word, "span"));
        }
        let refused = |head, words: &[u32]| load(head, words, None).expect_err("refused").to_string();
        assert!(refused(classes, &words[..2]).contains("2 label words for 3"));
        assert!(refused(classes, &[1, 2, 50]).contains("outside"));
        assert!(refused(classes, &[1, 2, 1]).contains("two classes"));
    }
    // Without a language-model head, dot products with embeddings.
    let folder = tempfile::tempdir().expect("a folder");
    models::model("bert", CLASSES, 0.0).save(folder.path()).expect("saved");
    let (_, kind) = Model::load_with_label_words(folder.path(), CLASSES, &[7, 30], None, 0).expect("loads");
    assert_eq!(kind, LabelWordHead::Embedding);
}
