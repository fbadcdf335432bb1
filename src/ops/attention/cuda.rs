//! Launches of `kernels/attention*.cu`.

use crate::launch::kernels::{
    attention, attention_bf16_16, attention_bf16_32, attention_bf16_64, attention_bf16_96,
    attention_bf16_128, attention_f32_32, attention_f32_64, attention_f32_128,
};
use crate::launch::{DropoutOperand, ElementType, Grid, Matrix, Pointer, Queue, int, or_null};

/// Threads of a block of the kernels that multiply.
const THREADS: u32 = 128;
/// Largest head the kernels hold.
pub const MAX_HEAD_DIM: usize = 128;
/// Mean length of sequences from which 128 queries a block can pay: fewer reads a product, but fewer and larger blocks.
const LONG: usize = 256;
/// Blocks a multiprocessor that there must then be, so that the last round of blocks is a small part of all.
const LONG_BLOCKS: usize = 8;

/// What decides the grid and the kernel.
#[derive(Clone, Copy)]
struct Problem {
    sequences: usize,
    heads: usize,
    head_dim: usize,
}

impl Problem {
    fn assert_fits(&self, scale: f32, matrices: &[Matrix]) {
        let [first, rest @ ..] = matrices else { return };
        assert!(matrices.iter().all(|m| m.cols == self.heads * self.head_dim));
        assert!(rest.iter().all(|m| (m.element, m.rows) == (first.element, first.rows)));
        assert!(self.head_dim <= MAX_HEAD_DIM, "heads of {} elements are refused earlier", self.head_dim);
        // The running maximum is taken before the scores are scaled.
        assert!(scale > 0.0, "scores are scaled by a positive number, not {scale}");
    }

    /// The head size that kernels are compiled for, and in which heads of `head_dim` are padded.
    fn padded(&self, element: ElementType) -> usize {
        let sizes: &[usize] = match element {
            ElementType::F32 => &[32, 64, 128],
            ElementType::Bf16 => &[16, 32, 64, 96, 128],
        };
        *sizes.iter().find(|&&size| self.head_dim <= size).expect("asserted above")
    }

    /// Blocks of `rows` rows each: as many as sequences that cover `tokens` tokens can need, for every head.
    fn grid(&self, tokens: usize, rows: usize, shared: usize) -> Grid {
        Grid::new([tokens / rows + self.sequences, self.heads, 1], THREADS).with_shared(shared)
    }

    /// Whether heads may be read and written 16 bytes at a time.
    fn vector(&self, matrices: &[Matrix]) -> i32 {
        let bytes = matrices.first().map_or(0, |m| m.element.bytes());
        int(usize::from((self.head_dim * bytes).is_multiple_of(16) && matrices.iter().all(Matrix::aligned16)))
    }
}

/// How a block goes through its problem.
#[derive(Clone, Copy)]
struct Tiling {
    element: ElementType,
    /// Head size, padded.
    size: usize,
    /// Rows a block owns.
    rows: usize,
    /// Rows of the other side a stage holds, and stages.
    streamed: usize,
    stages: usize,
}

impl Tiling {
    fn new(element: ElementType, size: usize) -> Tiling {
        let (rows, streamed, stages) = match element {
            ElementType::F32 => (32, 32, 1),
            ElementType::Bf16 => (64, if size <= 64 { 64 } else { 32 }, 2),
        };
        Tiling { element, size, rows, streamed, stages }
    }

    /// Bytes of shared memory of a block that keeps `own` rows, streams two operands, and in f32 passes `scores` tiles
    /// of scores.
    fn shared_bytes(&self, own: usize, scores: usize) -> usize {
        let rows = own + 2 * self.stages * self.streamed;
        match self.element {
            ElementType::Bf16 => 2 * self.size * rows,
            // Rows are four elements further apart, so that they begin in different banks.
            ElementType::F32 => 4 * ((self.size + 4) * rows + scores * 32 * 32),
        }
    }
}

/// See the [module](super). `q`, `k`, `v`, `out`, `unmasked`: `[T_total, H·d_h]` of one element type, `cu_seqlens`:
/// `[sequences + 1]`, `head_mask`: `[H]`, `lse`: `[T_total, H]` in f32. d_h is at most [`MAX_HEAD_DIM`], `scale`
/// positive.
pub fn forward(
    queue: &mut Queue,
    q: Matrix,
    k: Matrix,
    v: Matrix,
    cu_seqlens: Pointer<i32>,
    sequences: usize,
    heads: usize,
    head_dim: usize,
    scale: f32,
    causal: bool,
    head_mask: Option<Pointer<f32>>,
    dropout: Option<DropoutOperand>,
    out: Matrix,
    lse: Matrix,
    unmasked: Option<Matrix>,
) {
    let (head_mask, dropout) = (or_null(head_mask), DropoutOperand::or_none(dropout));
    let problem = Problem { sequences, heads, head_dim };
    let context = unmasked.unwrap_or(out);
    problem.assert_fits(scale, &[q, k, v, out, context]);
    assert_eq!((lse.rows, lse.cols), (q.rows, heads));
    if out.is_empty() || sequences == 0 {
        return;
    }
    let (element, size) = (q.element, problem.padded(q.element));
    let mut tiling = Tiling::new(element, size);
    let long = element == ElementType::Bf16
        && size == 64
        && q.rows >= LONG * sequences
        && q.rows / 128 * heads >= LONG_BLOCKS * queue.device().multiprocessors as usize;
    if long {
        tiling.rows = 128;
    }
    let grid = problem.grid(q.rows, tiling.rows, tiling.shared_bytes(tiling.rows, 1));
    let vector = problem.vector(&[q, k, v, out, context]);
    macro_rules! launch {
        ($kernel:expr, $pointer:ident $(, $vector:expr)?) => {
            $kernel(
                grid,
                q.$pointer(),
                int(q.ld),
                k.$pointer(),
                int(k.ld),
                v.$pointer(),
                int(v.ld),
                cu_seqlens,
                int(sequences),
                int(heads),
                int(head_dim),
                scale,
                i32::from(causal),
                $($vector,)?
                head_mask,
                dropout.key,
                dropout.site,
                dropout.threshold,
                dropout.scale,
                out.$pointer(),
                int(out.ld),
                lse.f32(),
                int(lse.ld),
                or_null(unmasked.map(|m| m.$pointer())),
                int(unmasked.map_or(0, |m| m.ld)),
            )
        };
    }
    queue.push(match (element, size) {
        (ElementType::F32, 32) => launch!(attention_f32_32::attention_forward_f32_32, f32),
        (ElementType::F32, 64) => launch!(attention_f32_64::attention_forward_f32_64, f32),
        (ElementType::F32, _) => launch!(attention_f32_128::attention_forward_f32_128, f32),
        (ElementType::Bf16, 16) => launch!(attention_bf16_16::attention_forward_bf16_16, bf16, vector),
        (ElementType::Bf16, 32) => launch!(attention_bf16_32::attention_forward_bf16_32, bf16, vector),
        (ElementType::Bf16, 64) if long => {
            launch!(attention_bf16_64::attention_forward_long_bf16_64, bf16, vector)
        }
        (ElementType::Bf16, 64) => launch!(attention_bf16_64::attention_forward_bf16_64, bf16, vector),
        (ElementType::Bf16, 96) => launch!(attention_bf16_96::attention_forward_bf16_96, bf16, vector),
        (ElementType::Bf16, _) => launch!(attention_bf16_128::attention_forward_bf16_128, bf16, vector),
    });
}

/// The backward of [`forward`]. `dq`, `dk`, `dv`: `[T_total, H·d_h]` and `d_head_mask_per_sequence`: `[B, H]` in f32
/// are overwritten. `unmasked` is needed for the latter where there is a head mask.
pub fn backward(
    queue: &mut Queue,
    q: Matrix,
    k: Matrix,
    v: Matrix,
    out: Matrix,
    dout: Matrix,
    lse: Matrix,
    unmasked: Option<Matrix>,
    cu_seqlens: Pointer<i32>,
    sequences: usize,
    heads: usize,
    head_dim: usize,
    scale: f32,
    causal: bool,
    head_mask: Option<Pointer<f32>>,
    dropout: Option<DropoutOperand>,
    dq: Matrix,
    dk: Matrix,
    dv: Matrix,
    d_head_mask_per_sequence: Option<Matrix>,
) {
    assert!(d_head_mask_per_sequence.is_none() || unmasked.is_some() || head_mask.is_none());
    let (head_mask, dropout) = (or_null(head_mask), DropoutOperand::or_none(dropout));
    let problem = Problem { sequences, heads, head_dim };
    let context = unmasked.unwrap_or(out);
    problem.assert_fits(scale, &[q, k, v, out, dout, context, dq, dk, dv]);
    assert_eq!((lse.rows, lse.cols), (q.rows, heads));
    if sequences == 0 || heads == 0 {
        return;
    }
    if let Some(dmask) = d_head_mask_per_sequence {
        assert_eq!((dmask.rows, dmask.cols), (sequences, heads));
        mask_gradient(queue, dout, context, cu_seqlens, dmask, head_dim);
    }
    if dq.is_empty() {
        return;
    }
    let statistics = queue.scratch::<f32>(2 * heads * q.rows);
    row_statistics(queue, dout, out, lse, statistics, heads, head_dim, problem.vector(&[dout, out]));
    let (element, size) = (q.element, problem.padded(q.element));
    let tiling = Tiling::new(element, size);
    let grid = |scores| problem.grid(q.rows, tiling.rows, tiling.shared_bytes(2 * tiling.rows, scores));
    let vector = problem.vector(&[q, k, v, dout, dq, dk, dv]);
    macro_rules! launch {
        ($kernel:expr, $scores:expr, $pointer:ident, [$($gradient:ident),*] $(, $vector:expr)?) => {
            queue.push($kernel(
                grid($scores),
                q.$pointer(),
                int(q.ld),
                k.$pointer(),
                int(k.ld),
                v.$pointer(),
                int(v.ld),
                dout.$pointer(),
                int(dout.ld),
                statistics,
                int(q.rows),
                cu_seqlens,
                int(sequences),
                int(heads),
                int(head_dim),
                scale,
                i32::from(causal),
                $($vector,)?
                head_mask,
                dropout.key,
                dropout.site,
                dropout.threshold,
                dropout.scale,
                $($gradient.$pointer(), int($gradient.ld)),*
            ))
        };
    }
    macro_rules! launch_both {
        ($module:ident, $keys:ident, $queries:ident, $pointer:ident $(, $vector:expr)?) => {{
            launch!($module::$keys, 2, $pointer, [dk, dv] $(, $vector)?);
            launch!($module::$queries, 1, $pointer, [dq] $(, $vector)?);
        }};
    }
    match (element, size) {
        (ElementType::F32, 32) => {
            launch_both!(attention_f32_32, attention_keys_f32_32, attention_queries_f32_32, f32);
        }
        (ElementType::F32, 64) => {
            launch_both!(attention_f32_64, attention_keys_f32_64, attention_queries_f32_64, f32);
        }
        (ElementType::F32, _) => {
            launch_both!(attention_f32_128, attention_keys_f32_128, attention_queries_f32_128, f32);
        }
        (ElementType::Bf16, 16) => {
            launch_both!(attention_bf16_16, attention_keys_bf16_16, attention_queries_bf16_16, bf16, vector);
        }
        (ElementType::Bf16, 32) => {
            launch_both!(attention_bf16_32, attention_keys_bf16_32, attention_queries_bf16_32, bf16, vector);
        }
        (ElementType::Bf16, 64) => {
            launch_both!(attention_bf16_64, attention_keys_bf16_64, attention_queries_bf16_64, bf16, vector);
        }
        (ElementType::Bf16, 96) => {
            launch_both!(attention_bf16_96, attention_keys_bf16_96, attention_queries_bf16_96, bf16, vector);
        }
        (ElementType::Bf16, _) => {
            launch_both!(
                attention_bf16_128,
                attention_keys_bf16_128,
                attention_queries_bf16_128,
                bf16,
                vector
            );
        }
    }
}

/// `statistics [2, H, T]`: the logarithms of sums, then `Σ_j dout·out`, as the kernels of the gradients read them.
fn row_statistics(
    queue: &mut Queue,
    dout: Matrix,
    out: Matrix,
    lse: Matrix,
    statistics: Pointer<f32>,
    heads: usize,
    head_dim: usize,
    vector: i32,
) {
    const THREADS: usize = 256;
    // Whole heads by 16 bytes a thread, or a warp a head.
    let lanes = if vector != 0 { (head_dim * out.element.bytes() / 16).next_power_of_two() } else { 32 };
    let grid = Grid::linear((out.rows * heads).div_ceil(THREADS / lanes), THREADS as u32);
    let (lddout, ldout) = (int(dout.ld), int(out.ld));
    let (tokens, heads, head_dim) = (int(out.rows), int(heads), int(head_dim));
    queue.push(match out.element {
        ElementType::F32 => attention::attention_row_statistics_f32(
            grid,
            dout.f32(),
            lddout,
            out.f32(),
            ldout,
            lse.f32(),
            int(lse.ld),
            statistics,
            tokens,
            heads,
            head_dim,
            int(lanes),
            vector,
        ),
        ElementType::Bf16 => attention::attention_row_statistics_bf16(
            grid,
            dout.bf16(),
            lddout,
            out.bf16(),
            ldout,
            lse.f32(),
            int(lse.ld),
            statistics,
            tokens,
            heads,
            head_dim,
            int(lanes),
            vector,
        ),
    });
}

/// `dmask [B, H] = Σ dout·context` over the tokens of each sequence.
fn mask_gradient(
    queue: &mut Queue,
    dout: Matrix,
    context: Matrix,
    cu_seqlens: Pointer<i32>,
    dmask: Matrix,
    head_dim: usize,
) {
    if dmask.is_empty() {
        return;
    }
    let grid = Grid::new([dmask.rows, dmask.cols, 1], 256);
    let (lddout, ldcontext, lddmask, to) = (int(dout.ld), int(context.ld), int(dmask.ld), dmask.f32());
    queue.push(match dout.element {
        ElementType::F32 => attention::attention_mask_gradient_f32(
            grid,
            dout.f32(),
            lddout,
            context.f32(),
            ldcontext,
            cu_seqlens,
            to,
            lddmask,
            int(head_dim),
        ),
        ElementType::Bf16 => attention::attention_mask_gradient_bf16(
            grid,
            dout.bf16(),
            lddout,
            context.bf16(),
            ldcontext,
            cu_seqlens,
            to,
            lddmask,
            int(head_dim),
        ),
    });
}
