// Bits of the largest of many scores: the semantics of ops/select.
//
//   count_above    how many scores are above a threshold
//   start          state of a search for the count-th largest
//   count_digits   one digit of every score whose higher digits are the threshold's -> counts [2048], three times
//   choose_digit   counts -> the threshold's next digit and how many are still wanted among the scores that share it
//   count_equal    scores that equal the threshold, for each run of 1,024 scores
//   rank_equal     their running sum
//   write_bits     the bit set: above the threshold, or equal to it and early enough
//
// Scores are compared as integers ordered as floats are. Counting is in integers, so atomics change no result: in shared
// memory for a block, then one addition a counter to memory. Floor: memory, five reads of the scores and a 32nd of one
// written; a 4-million-score matrix stays in L2 after the first.
//
// Several matrices share one search by sharing its state and counters. Rows may be padded: of values `ld` apart the first
// `cols` are scores.
//
// state [2]: the digits of the threshold found so far, and how many of the scores that share them are wanted.
#include "prelude.cuh"

#define DIGITS 2048
#define RUN 1024

__device__ __forceinline__ u32 ordered(float score, bool magnitude) {
    u32 bits = __float_as_uint(score);
    if (magnitude) bits &= 0x7fffffffu;
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Whether value `at` of a matrix of fewer than 2^31 values is a score.
__device__ __forceinline__ bool is_score(u64 at, int cols, int ld) {
    return cols == ld || static_cast<int>(at) % ld < cols;
}

/// Adds to `above[0]` the number of `scores` above `threshold[0]`.
extern "C" __global__ void __launch_bounds__(512)
count_above(const float* scores, unsigned long long length, int cols, int ld, const float* threshold, unsigned* above) {
    __shared__ u32 partials[512 / WARP];
    const float limit = threshold[0];
    u32 count = 0;
    const u64 step = static_cast<u64>(gridDim.x) * 512;
    for (u64 at = static_cast<u64>(blockIdx.x) * 512 + threadIdx.x; at < length; at += step) {
        if (is_score(at, cols, ld) && scores[at] > limit) ++count;
    }
    count = block_reduce<512>(count, Sum(), partials);
    if (threadIdx.x == 0 && count != 0) atomicAdd(above, count);
}

/// `state` before the first digit, and `kept[0]` (or null): `wanted[0]` scores, or `above[0]` (or null) if that is more, of
/// `length` at most. One thread.
extern "C" __global__ void __launch_bounds__(32)
start(const int* wanted, const unsigned* above, unsigned length, unsigned* state, float* kept) {
    if (threadIdx.x != 0) return;
    u32 count = static_cast<u32>(max(wanted[0], 0));
    if (above != nullptr) count = max(count, above[0]);
    count = min(count, length);
    // Nothing is above the largest key, and none of its equals are wanted.
    state[0] = count == 0 ? 0xffffffffu : 0;
    state[1] = count;
    if (kept != nullptr) kept[0] = static_cast<float>(count);
}

/// Adds to `counts [2048]` the digit of 11 bits from `shift` on of the scores that agree with `state[0]` above it; `width` is
/// its number of bits. `counts` is zero before.
extern "C" __global__ void __launch_bounds__(512)
count_digits(const float* scores, unsigned long long length, int cols, int ld, int magnitude, const unsigned* state, int shift,
             int width, unsigned* counts) {
    __shared__ u32 local[DIGITS];
    for (int i = threadIdx.x; i < DIGITS; i += 512) local[i] = 0;
    __syncthreads();
    const u32 prefix = state[0];
    const int above = shift + width;
    const int lane = threadIdx.x % WARP;
    const u64 step = static_cast<u64>(gridDim.x) * 512;
    // The bound is a warp's own, so that its lanes vote together.
    for (u64 first = static_cast<u64>(blockIdx.x) * 512 + threadIdx.x - lane; first < length; first += step) {
        const u64 at = first + lane;
        const u32 key = at < length ? ordered(scores[at], magnitude) : 0;
        bool counts_here = at < length && is_score(at, cols, ld) && (above == 32 || key >> above == prefix >> above);
        const u32 digit = (key >> shift) & ((1u << width) - 1);
        // Scores may be equal in their millions (plus and minus the learning rate after the first step): the warp counts two
        // values together, for additions to one address come one after the other.
        for (int round = 0; round < 2; ++round) {
            const u32 pending = __ballot_sync(FULL_MASK, counts_here);
            if (pending == 0) break;
            const int leader = __ffs(pending) - 1;
            const u32 value = __shfl_sync(FULL_MASK, digit, leader);
            const bool same = counts_here && digit == value;
            const u32 votes = __ballot_sync(FULL_MASK, same);
            if (lane == leader) atomicAdd(&local[value], static_cast<u32>(__popc(votes)));
            counts_here = counts_here && !same;
        }
        if (counts_here) atomicAdd(&local[digit], 1u);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < DIGITS; i += 512) {
        if (local[i] != 0) atomicAdd(&counts[i], local[i]);
    }
}

/// The digit at `shift` of the threshold, from the top, and what is left to choose: updates `state`, and makes `counts`
/// zero again. One warp; a lane takes 64 counters.
extern "C" __global__ void __launch_bounds__(32)
choose_digit(unsigned* counts, int shift, unsigned* state) {
    const u32 wanted = state[1];
    const int lane = threadIdx.x;
    // Lane 0 has the highest digits.
    const int highest = DIGITS - 1 - lane * (DIGITS / WARP);
    u32 sum = 0;
    for (int i = 0; i < DIGITS / WARP; ++i) sum += counts[highest - i];
    u32 up_to = sum;
    for (int distance = 1; distance < WARP; distance *= 2) {
        const u32 other = __shfl_up_sync(FULL_MASK, up_to, distance);
        if (lane >= distance) up_to += other;
    }
    // Exactly one lane holds the one that is the last wanted.
    const u32 before = up_to - sum;
    // Every lane has read the state before one writes it.
    __syncwarp();
    if (before < wanted && wanted <= up_to) {
        u32 left = wanted - before;
        int digit = highest;
        while (counts[digit] < left) left -= counts[digit--];
        state[0] |= static_cast<u32>(digit) << shift;
        state[1] = left;
    }
    __syncwarp();
    for (int i = 0; i < DIGITS / WARP; ++i) counts[highest - i] = 0;
}

/// `equals[r]`: how many scores of run r, of 1,024, equal the threshold. A warp a run.
extern "C" __global__ void __launch_bounds__(256)
count_equal(const float* scores, unsigned long long length, int cols, int ld, int magnitude, const unsigned* state,
            unsigned* equals, int runs) {
    const int run = blockIdx.x * 8 + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (run >= runs) return;
    const u32 threshold = state[0];
    u32 count = 0;
    for (int i = lane; i < RUN; i += WARP) {
        const u64 at = static_cast<u64>(run) * RUN + i;
        if (at < length && is_score(at, cols, ld) && ordered(scores[at], magnitude) == threshold) ++count;
    }
    count = warp_reduce(count, Sum());
    if (lane == 0) equals[run] = count;
}

/// Replaces each of `equals [runs]` by the sum of those before it. One block.
extern "C" __global__ void __launch_bounds__(1024)
rank_equal(unsigned* equals, int runs) {
    __shared__ u32 warp_sums[1024 / WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int share = (runs + 1023) / 1024, first = min(share * static_cast<int>(threadIdx.x), runs);
    const int last = min(first + share, runs);
    u32 sum = 0;
    for (int i = first; i < last; ++i) sum += equals[i];
    u32 up_to = sum;
    for (int distance = 1; distance < WARP; distance *= 2) {
        const u32 other = __shfl_up_sync(FULL_MASK, up_to, distance);
        if (lane >= distance) up_to += other;
    }
    if (lane == WARP - 1) warp_sums[warp] = up_to;
    __syncthreads();
    u32 before = up_to - sum;
    for (int i = 0; i < warp; ++i) before += warp_sums[i];
    for (int i = first; i < last; ++i) {
        const u32 here = equals[i];
        equals[i] = before;
        before += here;
    }
}

/// `keep`, a bit a score in words of 32: above the threshold, or equal and among the first `state[1]` of those. A warp a
/// run; `ranks` as rank_equal wrote them; `words` is the whole length of `keep`.
extern "C" __global__ void __launch_bounds__(256)
write_bits(const float* scores, unsigned long long length, int cols, int ld, int magnitude, const unsigned* state,
           const unsigned* ranks, int runs, unsigned* keep, unsigned long long words) {
    const int run = blockIdx.x * 8 + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (run >= runs) return;
    const u32 threshold = state[0], wanted = state[1];
    u32 rank = ranks[run];
    for (int i = 0; i < RUN / WARP; ++i) {
        const u64 word = static_cast<u64>(run) * (RUN / WARP) + i, at = word * WARP + lane;
        if (word >= words) return;
        const bool score = at < length && is_score(at, cols, ld);
        const u32 key = score ? ordered(scores[at], magnitude) : 0;
        const u32 equals = __ballot_sync(FULL_MASK, score && key == threshold);
        const u32 earlier = rank + __popc(equals & ((1u << lane) - 1));
        const bool kept = score && (key > threshold || (key == threshold && earlier < wanted));
        const u32 bits = __ballot_sync(FULL_MASK, kept);
        if (lane == 0) keep[word] = bits;
        rank += __popc(equals);
    }
}
