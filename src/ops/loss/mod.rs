//! Losses, their gradients written in the same pass.
//!
//! Every loss gives one number for each row, `losses[i]`, unweighted; the loss of the batch is
//! `Σ weights[i]·losses[i]` (weights 1/R for a mean over R rows), and gradients are those of that sum. A row
//! whose weight is 0 or whose label is negative (Hugging Face marks ignored positions −100) has loss 0 and
//! gradient 0. Where a function has `accumulate`, the gradient is added to what is there instead of
//! replacing it, so that a mixture α·hard + β·soft is two calls whose weights carry α and β.
//!
//! | function | loss of a row |
//! |---|---|
//! | `cross_entropy` | log Σ_c exp z_c − z_label |
//! | `linear_cross_entropy` | the same of z = W·x + b, with never more than a chunk of rows of z in memory |
//! | `mean_squared_error` | (x − y)² |
//! | `span` | mean of the cross-entropies of a start and an end over the row's own tokens |
//! | `distillation` | T²·KL(softmax(teacher/T) ‖ softmax(student/T)) (Hinton, Vinyals and Dean 2015) |
//! | `span_distillation` | mean of T²·KL of a start and an end over the row's own tokens |
//!
//! Softmax subtracts the maximum first: logits of any finite size are safe. Error of a row of C classes, with
//! E[max − z] the mean under its own probabilities: the loss is off by at most
//! u·(3·E[max − z] + 2·(max − z_label) + 4·log Σ exp(z − max) + 5) + γ_{C/32 + 6}, a probability p_c by p_c times
//! u·(3·E[max − z] + 3·(max − z_c) + 11) + γ_{C/32 + 6}. Class numbers are checked by the caller against C. Cost:
//! memory, and two vectorised exp for each logit.

pub mod cpu;
pub mod cuda;
mod linear;
pub mod reference;
