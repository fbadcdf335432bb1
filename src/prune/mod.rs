//! Scores, searches under a cost budget, and the methods built of them.
