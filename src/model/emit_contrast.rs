//! Emission of what contrastive pruning compares: the sentence vectors, and their losses over banks.

use super::emit::{Emitter, Sentence};
use crate::program::{Extent, SlotId};

/// Contrastive losses of the sentence vectors: one over each of three banks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ContrastiveTerms {
    /// Scores are divided by it.
    pub temperature: f32,
    /// Most rows of each bank that are candidates at once, at least 1.
    pub bank_rows: [usize; 3],
    /// Whether rows of the same label attract one another too.
    pub supervised: bool,
}

/// Slots of contrastive losses.
#[derive(Clone, Copy, Debug)]
pub struct ContrastiveSlots {
    /// Example of each sequence, `[B]`.
    pub ids: SlotId,
    /// Its label, `[B]`; negative is none.
    pub labels: Option<SlotId>,
    /// The banks.
    pub banks: [BankSlots; 3],
}

/// Slots of the contrastive loss over one bank of K rows.
#[derive(Clone, Copy, Debug)]
pub struct BankSlots {
    /// Normalised sentence vectors, `[K, d]`.
    pub rows: SlotId,
    /// Example of each, `[K]`; negative where there is none.
    pub ids: SlotId,
    /// Its label, `[K]`.
    pub labels: Option<SlotId>,
    /// What the two losses of every sequence are multiplied by, `[1, 2]`.
    pub weights: SlotId,
    /// Unsupervised and supervised loss of each sequence, `[B, 2]`.
    pub losses: SlotId,
}

impl Emitter<'_> {
    /// Keeps the sentence vectors `[B, d]` and holds them against banks, as far as the options ask for it. `cls` gives what
    /// of the tokens that answer may stand for a sentence; `x [T, d]`: the hidden states of all.
    pub(super) fn sentences(
        &mut self,
        x: SlotId,
        cls: impl FnOnce(&mut Self) -> SlotId,
    ) -> (Option<SlotId>, Option<ContrastiveSlots>) {
        if !self.options.sentences && self.options.contrastive.is_none() {
            return (None, None);
        }
        let sentence = match self.options.sentence {
            Sentence::Cls => cls(self),
            Sentence::Mean => {
                let sequences = self.b.int_input("sequences", Extent::Tokens);
                self.inputs.sequences = Some(sequences);
                self.b.sum_rows("sentence.sum", x, sequences, Extent::Sequences)
            }
        };
        if self.options.sentences {
            self.b.keep(sentence);
        }
        (Some(sentence), self.options.contrastive.map(|terms| self.against_banks(sentence, terms)))
    }

    fn against_banks(&mut self, sentence: SlotId, terms: ContrastiveTerms) -> ContrastiveSlots {
        let b = &mut self.b;
        let (rows, width) = b.shape(sentence);
        let ids = b.int_input("contrastive.ids", rows);
        let labels = terms.supervised.then(|| b.int_input("contrastive.labels", rows));
        let names = ["pretrained", "finetuned", "snapshots"];
        let bank = |which: usize| {
            let name = |part: &str| format!("{}.{part}", names[which]);
            let extent = Extent::Fixed(terms.bank_rows[which]);
            let bank = b.input(name("bank"), extent, width);
            let bank_ids = b.int_input(name("ids"), extent);
            let bank_labels = terms.supervised.then(|| b.int_input(name("labels"), extent));
            let weights = b.input(name("weights"), Extent::Fixed(1), 2);
            let pair = labels.zip(bank_labels).map(|(of_rows, of_bank)| [of_rows, of_bank]);
            let keys = [ids, bank_ids];
            let losses =
                b.contrastive(&name("losses"), sentence, bank, keys, pair, terms.temperature, weights);
            BankSlots { rows: bank, ids: bank_ids, labels: bank_labels, weights, losses }
        };
        ContrastiveSlots { ids, labels, banks: [0, 1, 2].map(bank) }
    }
}
