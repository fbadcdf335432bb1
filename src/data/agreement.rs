//! The built-in task: is the number agreement of a sentence right?
//!
//! A small context-free grammar generates sentences such as "the keys that the man near my cabinets sees fall .".
//! In half of
//! them the main verb is put in the wrong number. Phrases between the subject and its verb hold nouns of random
//! number (attractors: Linzen, Dupoux & Goldberg 2016), so the noun next to the verb is no guide and a
//! model must find the subject. It needs no download, is endless, and can be learnt by a tiny model in minutes.
//!
//! Everything is a function of the seed. No sentence of one split, in either number, occurs in another.

use std::collections::HashSet;
use std::path::Path;

use super::random::{Purpose, Stream};
use super::source::ReadReport;
use super::task::Split;
use super::tokenizer::Tokenizer;
use super::{Target, TextRow};
use crate::Result;

/// Class names: class 1 is a sentence whose verb agrees with its subject.
pub const LABELS: [&str; 2] = ["ungrammatical", "grammatical"];

/// Special tokens, ids 0 to 4.
const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
/// Singular and plural.
const NOUNS: [[&str; 2]; 30] = [
    ["bird", "birds"],
    ["boat", "boats"],
    ["book", "books"],
    ["bridge", "bridges"],
    ["cabinet", "cabinets"],
    ["cat", "cats"],
    ["child", "children"],
    ["doctor", "doctors"],
    ["dog", "dogs"],
    ["farmer", "farmers"],
    ["garden", "gardens"],
    ["horse", "horses"],
    ["key", "keys"],
    ["king", "kings"],
    ["lamp", "lamps"],
    ["lawyer", "lawyers"],
    ["letter", "letters"],
    ["man", "men"],
    ["painter", "painters"],
    ["picture", "pictures"],
    ["pilot", "pilots"],
    ["queen", "queens"],
    ["river", "rivers"],
    ["sailor", "sailors"],
    ["singer", "singers"],
    ["student", "students"],
    ["table", "tables"],
    ["teacher", "teachers"],
    ["tower", "towers"],
    ["woman", "women"],
];
const TRANSITIVE: [[&str; 2]; 12] = [
    ["admires", "admire"],
    ["avoids", "avoid"],
    ["calls", "call"],
    ["describes", "describe"],
    ["finds", "find"],
    ["follows", "follow"],
    ["hears", "hear"],
    ["helps", "help"],
    ["knows", "know"],
    ["likes", "like"],
    ["remembers", "remember"],
    ["sees", "see"],
];
const INTRANSITIVE: [[&str; 2]; 10] = [
    ["arrives", "arrive"],
    ["disappears", "disappear"],
    ["falls", "fall"],
    ["laughs", "laugh"],
    ["moves", "move"],
    ["shines", "shine"],
    ["sleeps", "sleep"],
    ["stays", "stay"],
    ["waits", "wait"],
    ["works", "work"],
];
const COPULA: [[&str; 2]; 2] = [["is", "are"], ["was", "were"]];
const ADJECTIVES: [&str; 20] = [
    "bright", "clean", "dark", "dirty", "famous", "green", "happy", "heavy", "large", "loud", "new", "old",
    "quiet", "red", "sad", "short", "small", "strange", "tall", "young",
];
const ADVERBS_BEFORE: [&str; 5] = ["always", "never", "often", "rarely", "usually"];
const ADVERBS_AFTER: [&str; 5] = ["here", "quickly", "quietly", "slowly", "today"];
const PREPOSITIONS: [&str; 10] =
    ["above", "against", "around", "before", "behind", "beside", "near", "of", "under", "with"];
/// Determiners that go with both numbers.
const DETERMINERS: [&str; 7] = ["her", "his", "my", "our", "the", "their", "your"];
const THAT: &str = "that";
const COMMA: &str = ",";
const STOP: &str = ".";

/// Share of subjects without any phrase between them and the verb.
const BARE_SUBJECTS: f64 = 0.2;
/// Share of sentences that begin with a prepositional phrase.
const FRONTED_PHRASES: f64 = 0.25;
/// Chance of an adjective before a noun.
const ADJECTIVE: f64 = 0.25;

/// Number of sentences of each split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Training sentences.
    pub train: usize,
    /// Development sentences.
    pub dev: usize,
    /// Test sentences.
    pub test: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Sizes { train: 20_000, dev: 2_000, test: 2_000 }
    }
}

/// A generated sentence, its verb in the right number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sentence {
    words: Vec<&'static str>,
    main_verb: usize,
    /// The main verb in the other number.
    wrong_verb: &'static str,
    /// Number of the subject: 0 singular, 1 plural.
    subject: usize,
    /// Numbers of the nouns before the main verb, in order.
    nouns_before_verb: Vec<usize>,
}

impl Sentence {
    /// The text, words separated by spaces.
    pub fn text(&self, grammatical: bool) -> String {
        let mut words = self.words.clone();
        if !grammatical {
            words[self.main_verb] = self.wrong_verb;
        }
        words.join(" ")
    }

    /// What a reader would say who takes the noun next before the main verb for its subject.
    pub fn nearest_noun_agrees(&self, grammatical: bool) -> bool {
        let verb = if grammatical { self.subject } else { 1 - self.subject };
        self.nouns_before_verb.last() == Some(&verb)
    }

    /// What a reader would say who takes the first noun of the sentence for the subject.
    pub fn first_noun_agrees(&self, grammatical: bool) -> bool {
        let verb = if grammatical { self.subject } else { 1 - self.subject };
        self.nouns_before_verb.first() == Some(&verb)
    }
}

/// The sentences of a split, each with whether it is to be shown in its grammatical form (every second one is).
pub fn sentences(split: Split, sizes: &Sizes, seed: u64) -> Vec<(Sentence, bool)> {
    let mut used = HashSet::new();
    let dev = distinct(sizes.dev, seed, 0, &mut used);
    let chosen = match split {
        Split::Dev => dev,
        Split::Test => distinct(sizes.test, seed, 1, &mut used),
        Split::Train => {
            distinct(sizes.test, seed, 1, &mut used);
            distinct(sizes.train, seed, 2, &mut used)
        }
    };
    chosen.into_iter().enumerate().map(|(place, sentence)| (sentence, place % 2 == 0)).collect()
}

/// The rows of a split: a sentence and its class.
pub fn rows(split: Split, sizes: &Sizes, seed: u64) -> (Vec<TextRow>, ReadReport) {
    let rows: Vec<TextRow> = sentences(split, sizes, seed)
        .into_iter()
        .map(|(sentence, grammatical)| TextRow {
            first: sentence.text(grammatical),
            second: None,
            target: Target::Class(grammatical.into()),
        })
        .collect();
    let report = ReadReport { rows: rows.len(), ..ReadReport::new("the built-in agreement task") };
    (rows, report)
}

/// `count` different grammatical sentences for masked language modelling, none of them (in either number) in the
/// development or test split of the same seed and sizes.
pub fn corpus(count: usize, sizes: &Sizes, seed: u64) -> Vec<String> {
    let mut used = HashSet::new();
    distinct(sizes.dev, seed, 0, &mut used);
    distinct(sizes.test, seed, 1, &mut used);
    distinct(count, seed, 3, &mut used).iter().map(|sentence| sentence.text(true)).collect()
}

/// Every token of the task: the special tokens, then the words in alphabetical order. One a line, this is a
/// WordPiece `vocab.txt`.
pub fn vocabulary() -> Vec<String> {
    let pairs = NOUNS.iter().chain(&TRANSITIVE).chain(&INTRANSITIVE).chain(&COPULA).flatten();
    let single = ADJECTIVES
        .iter()
        .chain(&ADVERBS_BEFORE)
        .chain(&ADVERBS_AFTER)
        .chain(&PREPOSITIONS)
        .chain(&DETERMINERS);
    let mut words: Vec<&str> = pairs.chain(single).chain(&[THAT, COMMA, STOP]).copied().collect();
    words.sort_unstable();
    SPECIAL.iter().copied().chain(words).map(str::to_string).collect()
}

/// The tokenizer of the task: one token a word.
///
/// # Errors
/// None in practice; the vocabulary is fixed.
pub fn tokenizer() -> Result<Tokenizer> {
    Tokenizer::from_wordpiece(&vocabulary(), true, Path::new("the built-in vocabulary"))
}

fn distinct(count: usize, seed: u64, part: u64, used: &mut HashSet<String>) -> Vec<Sentence> {
    let mut stream = Stream::new(seed, Purpose::Generation, part);
    let mut made = Vec::with_capacity(count);
    while made.len() < count {
        let sentence = Generator { stream: &mut stream, words: Vec::new(), nouns: Vec::new() }.sentence();
        if used.insert(sentence.text(true)) {
            made.push(sentence);
        }
    }
    made
}

/// One sentence in the making. Numbers are 0 for singular and 1 for plural.
struct Generator<'a> {
    stream: &'a mut Stream,
    words: Vec<&'static str>,
    nouns: Vec<usize>,
}

impl Generator<'_> {
    /// S → [PP ,] NP(n) VP(n) .
    fn sentence(mut self) -> Sentence {
        if self.stream.chance(FRONTED_PHRASES) {
            self.prepositional_phrase();
            self.words.push(COMMA);
        }
        let subject = self.stream.below(2);
        self.noun_phrase(subject);
        if !self.stream.chance(BARE_SUBJECTS) {
            self.modifier(subject);
        }
        let nouns_before_verb = self.nouns.clone();
        let (main_verb, wrong_verb) = self.verb_phrase(subject);
        self.words.push(STOP);
        Sentence { words: self.words, main_verb, wrong_verb, subject, nouns_before_verb }
    }

    /// NP(n) → Det [Adj] N(n)
    fn noun_phrase(&mut self, number: usize) {
        self.words.push(*self.stream.pick(&DETERMINERS));
        if self.stream.chance(ADJECTIVE) {
            self.words.push(*self.stream.pick(&ADJECTIVES));
        }
        self.words.push(self.stream.pick(&NOUNS)[number]);
        self.nouns.push(number);
    }

    /// PP → Prep NP, of random number
    fn prepositional_phrase(&mut self) {
        self.words.push(*self.stream.pick(&PREPOSITIONS));
        self.any_noun_phrase();
    }

    fn any_noun_phrase(&mut self) -> usize {
        let number = self.stream.below(2);
        self.noun_phrase(number);
        number
    }

    /// Mod(n) → PP | PP PP | that V(n) NP | that NP(m) V(m) | that NP(m) PP V(m) | PP that V(n) NP
    fn modifier(&mut self, head: usize) {
        match self.stream.below(6) {
            0 => self.prepositional_phrase(),
            1 => {
                self.prepositional_phrase();
                self.prepositional_phrase();
            }
            2 => self.subject_relative(head),
            form @ (3 | 4) => {
                self.words.push(THAT);
                let number = self.any_noun_phrase();
                if form == 4 {
                    self.prepositional_phrase();
                }
                self.words.push(self.stream.pick(&TRANSITIVE)[number]);
            }
            _ => {
                // A relative clause after "of the cats" could belong to the cats; its verb then agrees with them.
                self.prepositional_phrase();
                let nearest = self.nouns[self.nouns.len() - 1];
                self.subject_relative(nearest);
            }
        }
    }

    fn subject_relative(&mut self, head: usize) {
        self.words.push(THAT);
        self.words.push(self.stream.pick(&TRANSITIVE)[head]);
        self.any_noun_phrase();
    }

    /// VP(n) → [Adv] Vi(n) [Adv] | [Adv] Vt(n) NP [PP] | Cop(n) Adj. Returns the verb's place and its other form.
    fn verb_phrase(&mut self, number: usize) -> (usize, &'static str) {
        let form = self.stream.below(3);
        if form < 2 && self.stream.chance(0.3) {
            self.words.push(*self.stream.pick(&ADVERBS_BEFORE));
        }
        let verb: [&'static str; 2] = match form {
            0 => *self.stream.pick(&INTRANSITIVE),
            1 => *self.stream.pick(&TRANSITIVE),
            _ => *self.stream.pick(&COPULA),
        };
        let place = self.words.len();
        self.words.push(verb[number]);
        match form {
            0 if self.stream.chance(0.3) => self.words.push(*self.stream.pick(&ADVERBS_AFTER)),
            0 => {}
            1 => {
                self.any_noun_phrase();
                if self.stream.chance(0.2) {
                    self.prepositional_phrase();
                }
            }
            _ => self.words.push(*self.stream.pick(&ADJECTIVES)),
        }
        (place, verb[1 - number])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes = Sizes { train: 4000, dev: 500, test: 500 };

    #[test]
    fn splits_share_no_sentence_in_either_number() {
        let words = |split| -> HashSet<String> {
            sentences(split, &SIZES, 5).iter().map(|(sentence, _)| sentence.text(true)).collect()
        };
        let (train, dev, test) = (words(Split::Train), words(Split::Dev), words(Split::Test));
        assert_eq!((train.len(), dev.len(), test.len()), (4000, 500, 500));
        assert!(train.is_disjoint(&dev) && train.is_disjoint(&test) && dev.is_disjoint(&test));
        let corpus: HashSet<String> = corpus(3000, &SIZES, 5).into_iter().collect();
        assert!(corpus.len() == 3000 && corpus.is_disjoint(&dev) && corpus.is_disjoint(&test));
    }

    #[test]
    fn the_development_set_does_not_depend_on_the_training_size() {
        let small = sentences(Split::Dev, &SIZES, 9);
        assert_eq!(small, sentences(Split::Dev, &Sizes { train: 10, ..SIZES }, 9));
        assert_ne!(small, sentences(Split::Dev, &SIZES, 10));
    }

    /// The nearest noun is the subject in 20 % of the sentences and random in the others, so this heuristic is
    /// right in
    /// 60 %; the first noun is the subject in 75 % and random in the rest: 87.5 %. A model that finds the subject
    /// reaches 100 %.
    #[test]
    fn shortcuts_stay_well_below_the_task() {
        let set = sentences(Split::Train, &SIZES, 1);
        let accuracy = |guess: fn(&Sentence, bool) -> bool| {
            set.iter().filter(|(sentence, label)| guess(sentence, *label) == *label).count() as f64
                / set.len() as f64
        };
        let (nearest, first) =
            (accuracy(Sentence::nearest_noun_agrees), accuracy(Sentence::first_noun_agrees));
        println!("nearest noun {nearest:.3}, first noun {first:.3}, {} sentences", set.len());
        // Four standard deviations of a mean of 4000 draws.
        assert!((nearest - 0.6).abs() < 4.0 * (0.6f64 * 0.4 / 4000.0).sqrt(), "{nearest}");
        assert!((first - 0.875).abs() < 4.0 * (0.875f64 * 0.125 / 4000.0).sqrt(), "{first}");
        assert_eq!(set.iter().filter(|(_, label)| *label).count(), 2000);
    }

    #[test]
    fn every_word_is_one_known_token() {
        let vocabulary = vocabulary();
        assert_eq!(vocabulary.iter().collect::<HashSet<_>>().len(), vocabulary.len());
        assert!((150..=300).contains(&vocabulary.len()), "{}", vocabulary.len());
        let tokenizer = tokenizer().unwrap();
        let unknown = tokenizer.special().unk.unwrap() as i32;
        for (sentence, grammatical) in sentences(Split::Dev, &SIZES, 3) {
            let text = sentence.text(grammatical);
            let row = tokenizer.encode(&text, None, 64).unwrap();
            assert_eq!(row.ids.len(), text.split(' ').count() + 2, "{text}");
            assert!(!row.ids.contains(&unknown), "{text}");
        }
    }
}
