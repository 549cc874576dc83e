// A circuit's passes over its rows, compiled: the same sums as rayad/density/spn.py, in float32.
//
// Letters, as there: n rows, m variables, l leaf regions, w variables of a region, i and j nodes of a region,
// s sums, c roots, r replicas, p products. Regions of replica r are r, r + R, r + 2R, ... at every level, and the
// children of product p are regions p and p + P of the level below, so one replica is a tree that stays in the cache.
//
// Rows go through in blocks and lie in the lanes of vectors: the values of a region are i n, and a weight is broadcast.
// So nothing is padded but the rows, no lanes are added to each other, and weights are taken as they lie. Every product
// of matrices is a tile of up to TALL results times VECTORS vectors that lives in registers. Sums over rows, which the
// statistics are, have nodes in the lanes instead, of values that were transposed.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

// Compilers would rather load a number again for every product, and processors load one or two vectors a cycle.
#if defined(__AVX512F__)
#define IN_A_REGISTER(x) asm("" : "+v"(x))
#elif defined(__SSE__)
#define IN_A_REGISTER(x) asm("" : "+x"(x))
#else
#define IN_A_REGISTER(x)
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, VECTORS = 4;
#elif defined(__AVX2__)
constexpr int LANES = 8, VECTORS = 2;
#else
constexpr int LANES = 4, VECTORS = 2;
#endif
constexpr int TALL = 5;

constexpr float NEGLIGIBLE = -60.0f;
constexpr int64_t BLOCK = 128;           // rows, at most
constexpr int64_t CACHE = 24 << 20;      // bytes that a block of rows keeps, about

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef float Loose __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t Whole __attribute__((vector_size(4 * LANES)));
typedef double Wide __attribute__((vector_size(4 * LANES)));
typedef double LooseWide __attribute__((vector_size(4 * LANES), aligned(8)));

inline Vector load(const float *p) { return *reinterpret_cast<const Loose *>(p); }
inline void store(float *p, Vector x) { *reinterpret_cast<Loose *>(p) = x; }
inline Wide load(const double *p) { return *reinterpret_cast<const LooseWide *>(p); }
inline void store(double *p, Wide x) { *reinterpret_cast<LooseWide *>(p) = x; }
inline Vector all(float x) { return x - Vector{}; }
inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }
inline float sum(Vector x) {
    float total = 0;
    for (int k = 0; k < LANES; k++) total += x[k];
    return total;
}
template <class To, class From> inline To bits(From x) {
    To y;
    std::memcpy(&y, &x, sizeof y);
    return y;
}

// exp of x <= 0, and 0 below NEGLIGIBLE; relative error 2.4e-7. A polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2],
// fitted to the relative error (3e-9), and a power of two that is added to the exponent.
inline Vector exponential(Vector x) {
    const Vector shift = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to whole numbers, in the lowest bits
    Vector kept = x < NEGLIGIBLE ? all(NEGLIGIBLE) : x;
    Vector shifted = kept * 1.44269504f + shift;
    Vector rest = kept - (shifted - shift) * 0.69314718f;
    Vector y = all(1.3814599e-3f);
    y = y * rest + 8.368717e-3f;
    y = y * rest + 4.166839e-2f;
    y = y * rest + 1.6666521e-1f;
    y = y * rest + 4.9999994e-1f;
    y = y * (rest * rest) + rest + 1.0f;
    Vector scaled = bits<Vector>(bits<Whole>(y) + (bits<Whole>(shifted) << 23));
    return x < NEGLIGIBLE ? Vector{} : scaled;
}

// log of a positive normal number; relative error 1e-7 (Cephes' polynomial on [sqrt(1/2), sqrt(2)]).
inline Vector logarithm(Vector x) {
    Whole word = bits<Whole>(x);
    Whole exponent = (word >> 23) - 126;
    Vector y = bits<Vector>((word & 0x007fffff) | 0x3f000000);  // in [1/2, 1)
    Whole low = y < 0.707106781186547524f;
    exponent = exponent + low;  // low is -1 where true
    y = low ? y + y - 1.0f : y - 1.0f;
    Vector e = __builtin_convertvector(exponent, Vector), z = y * y;
    Vector p = all(7.0376836292e-2f);
    p = p * y - 1.1514610310e-1f;
    p = p * y + 1.1676998740e-1f;
    p = p * y - 1.2420140846e-1f;
    p = p * y + 1.4249322787e-1f;
    p = p * y - 1.6668057665e-1f;
    p = p * y + 2.0000714765e-1f;
    p = p * y - 2.4999993993e-1f;
    p = p * y + 3.3333331174e-1f;
    p = p * y * z + e * -2.12194440e-4f - 0.5f * z;
    return y + p + e * 0.693359375f;
}

// acc[m][v] += sum_k a(m, k) b(k)[v], in registers.
template <class T, int M, int V, class A, class B>
inline void accumulate(T (&acc)[M][V], int64_t depth, const A &a, const B &b) {
    for (int64_t k = 0; k < depth; k++) {
        const auto *at = b(k);
        T right[V];
        for (int v = 0; v < V; v++) {
            right[v] = load(at + v * (sizeof(T) / sizeof(*at)));
            IN_A_REGISTER(right[v]);
        }
        for (int m = 0; m < M; m++) {
            T left = a(m, k) - T{};
            for (int v = 0; v < V; v++) acc[m][v] += left * right[v];
        }
    }
}

template <int n> using Size = std::integral_constant<int, n>;

// Runs `body` with the number of vectors as a constant, until all numbers of a row are done.
template <int most = VECTORS, int lanes = LANES, class Body> inline void vectors(int64_t numbers, const Body &body) {
    int64_t at = 0, end = (numbers + lanes - 1) / lanes * lanes;
    for (; at + most * lanes <= end; at += most * lanes) body(Size<most>{}, at);
    if (at + 2 * lanes <= end) body(Size<2>{}, at), at += 2 * lanes;
    if (at < end) body(Size<1>{}, at);
}

// Runs `body` with the number of results as a constant, until all are done.
template <int most = TALL, class Body> inline void tiles(int64_t count, const Body &body) {
    int64_t m = 0;
    for (; m + most <= count; m += most) body(Size<most>{}, m);
    for (; m + 2 <= count; m += 2) body(Size<2>{}, m);
    if (m < count) body(Size<1>{}, m);
}

inline int64_t padded(int64_t numbers, int64_t lanes = LANES) { return (numbers + lanes - 1) / lanes * lanes; }

// A vector whose last numbers may lie beyond the end: they are zeros, and are not written.
inline Vector load_some(const float *p, int64_t count) {
    if (count >= LANES) return load(p);
    Vector x = {};
    std::memcpy(&x, p, 4 * (count & (LANES - 1)));
    return x;
}
inline void store_some(float *p, Vector x, int64_t count) {
    if (count >= LANES) return store(p, x);
    std::memcpy(p, &x, 4 * (count & (LANES - 1)));
}

// The numbers of a and of b, which are the lanes behind those of a, that `lane` says.
template <class Lane, size_t... k> inline Vector pick(Vector a, Vector b, Lane lane, std::index_sequence<k...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, lane(k)...);
#else
    return __builtin_shuffle(a, b, Whole{lane(k)...});
#endif
}

// Rows and lanes of a square of vectors change places: blocks of half the side beside the diagonal, again and again.
template <int half> inline void swap_blocks(Vector (&x)[LANES]) {
    constexpr auto upper = [](int k) { return k & half ? LANES + k - half : k; };
    constexpr auto lower = [](int k) { return k & half ? LANES + k : k + half; };
    for (int r = 0; r < LANES; r++)
        if (!(r & half)) {
            Vector a = x[r], b = x[r + half];
            x[r] = pick(a, b, upper, std::make_index_sequence<LANES>());
            x[r + half] = pick(a, b, lower, std::make_index_sequence<LANES>());
        }
    if constexpr (half > 1) swap_blocks<half / 2>(x);
}

// i n to n N, with zeros behind the nodes; there are whole vectors of rows.
void transpose(const float *from, int64_t nodes, int64_t n, float *to, int64_t N) {
    for (int64_t i = 0; i < nodes; i += LANES)
        for (int64_t k = 0; k < n; k += LANES) {
            Vector x[LANES];
            for (int q = 0; q < LANES; q++) x[q] = i + q < nodes ? load(from + (i + q) * n + k) : Vector{};
            swap_blocks<LANES / 2>(x);
            for (int q = 0; q < LANES; q++) store(to + (k + q) * N + i, x[q]);
        }
}

struct Buffer {  // aligned memory that a thread keeps from call to call
    float *data = nullptr;
    size_t size = 0;
    ~Buffer() { std::free(data); }
    float *take(size_t floats) {
        if (floats > size) {
            std::free(data);
            data = static_cast<float *>(std::aligned_alloc(64, (floats * 4 + 63) / 64 * 64));
            size = data ? floats : 0;
        }
        return data;
    }
};
thread_local Buffer scratch;

// In float64 beyond some hundred numbers a lane, so that the sum of a million keeps its digits.
double sum_of(const float *x, int64_t n) {
    double total = 0;
    for (int64_t first = 0; first < n; first += 256 * LANES) {
        const int64_t end = n - first < 256 * LANES ? n : first + 256 * LANES;
        Vector part = {};
        for (int64_t k = first; k < end; k += LANES) part += load_some(x + k, end - k);
        total += sum(part);
    }
    return total;
}

void log_rows(const float *x, float *out, int64_t n) {
    for (int64_t k = 0; k < n; k += LANES) {
        Vector some = all(1);
        std::memcpy(&some, x + k, 4 * (n - k < LANES ? n - k : LANES));
        store_some(out + k, logarithm(some), n - k);
    }
}

struct Denormals {  // counted as zero while this lives: they are slow, and sums do not notice
#if defined(__SSE__)
    unsigned before = _mm_getcsr();
    Denormals() { _mm_setcsr(before | 0x8040); }
    ~Denormals() { _mm_setcsr(before); }
#endif
};

}  // namespace

extern "C" {

// Sizes and parameters of a circuit; the leaves' natural parameters are made by `pack_leaves`.
struct Circuit {
    int64_t variables, replicas, depth, width, inputs, sums, roots;
    const int32_t *scopes;        // l w; unfilled places hold `variables`
    const float *slopes;          // l i 2w: coefficients of z, then of z^2
    const float *constants;       // l i
    const float *const *weights;  // of each sum layer, from the bottom up: p s i j
    const float *log_mixing;      // c
};

// What rows say; added to. `visits` lack the factor W, as in sums.py. N: inputs, in whole vectors of doubles.
struct Statistics {
    double *log_likelihood;  // 1
    double *roots;           // c
    double *mass;            // l N
    double *raw;             // l 2w N
    float *const *visits;    // of each sum layer: p s i j
};

int32_t lanes() { return LANES; }
}

namespace {

// One block of rows, and where its numbers lie.
struct Block {
    const Circuit &circuit;
    const int64_t n;                 // rows, in whole vectors
    float *table;                    // 2 (m + 1) n: z, a row of zeros, z^2, a row of zeros
    double *wide_table;              // the same in float64
    float *values[64], *peaks[64];   // level -> region i n, region n, levels from the leaves up
    float *tops[64];                 // level -> region n: the largest sum, as the children are scaled
    float *reach, *outs, *log_roots; // of the roots: r c i n, r c n, r c n
    float *flow[2];                  // two levels of one replica, region i n
    float *gain, *gained;            // s n, i n
    float *transposed, *pairs;       // n N, n (i j)
    double *wide_flow;               // one region's flow, n N
    float *ones;                     // n: the right child where there is none

    int64_t nodes(int64_t level) const { return level == 0 ? circuit.inputs : circuit.sums; }
    int64_t regions(int64_t level) const { return circuit.replicas << (circuit.depth - level); }
    int64_t levels() const { return circuit.depth > 0 ? circuit.depth : 1; }
    int64_t widest() const { return nodes(levels() - 1) > circuit.inputs ? circuit.sums : circuit.inputs; }
    int64_t pair_row() const { return padded(widest() * widest()) + LANES; }

    // Divides memory among all of it; returns how many floats that takes. Without memory it only counts.
    int64_t lay(float *memory, bool learns) {
        const Circuit &c = circuit;
        int64_t taken = 0;
        auto take = [&](int64_t floats) {
            float *found = memory ? memory + taken : nullptr;
            taken += padded(floats);
            return found;
        };
        const int64_t numbers = 2 * (c.variables + 1) * n;
        table = take(numbers);
        for (int64_t level = 0; level < levels(); level++) {
            values[level] = take(regions(level) * nodes(level) * n);
            peaks[level] = take(regions(level) * n);
            tops[level] = take(learns ? regions(level) * n : 0);
        }
        outs = take(c.replicas * c.roots * n);
        log_roots = take(c.replicas * c.roots * n);
        ones = take(n);
        reach = nullptr;
        if (!learns) return taken;
        reach = take(c.replicas * c.roots * nodes(levels() - 1) * n);
        for (auto &level : flow) level = take((int64_t(1) << levels()) * widest() * n);
        gain = take(c.sums * n);
        gained = take(widest() * n);
        transposed = take(padded(widest()) * n);
        pairs = take(c.depth > 1 ? pair_row() * n : 0);
        wide_table = reinterpret_cast<double *>(take(2 * numbers));
        wide_flow = reinterpret_cast<double *>(take(2 * padded(c.inputs) * n));
        return taken;
    }
};

// n rows of m variables to the table; rows beyond `real` are zeros.
void fill_table(Block &b, const float *x, int64_t real, bool learns) {
    const int64_t M = b.circuit.variables, half = (M + 1) * b.n;
    for (int64_t v = 0; v <= M; v++)
        for (int64_t n = 0; n < b.n; n++) {
            const float z = v < M && n < real ? x[n * M + v] : 0.0f;
            b.table[v * b.n + n] = z;
            b.table[half + v * b.n + n] = z * z;
            if (!learns) continue;
            b.wide_table[v * b.n + n] = z;
            b.wide_table[half + v * b.n + n] = double(z) * z;
        }
    for (int64_t n = 0; n < b.n; n++) b.ones[n] = 1;
}

// Densities of a leaf region, divided by the largest of each row.
void leaf_upward(Block &b, int64_t region) {
    const Circuit &c = b.circuit;
    const int64_t I = c.inputs, W = c.width, n = b.n;
    const int32_t *scope = c.scopes + region * W;
    const float *slopes = c.slopes + region * I * 2 * W, *constants = c.constants + region * I;
    const float *table = b.table, *squares = table + (c.variables + 1) * n;
    float *values = b.values[0] + region * I * n, *peaks = b.peaks[0] + region * n;
    vectors(n, [&](auto count, int64_t at) {
        constexpr int V = decltype(count)::value;
        Vector top[V];
        for (int v = 0; v < V; v++) top[v] = all(-INFINITY);
        tiles(I, [&](auto tile, int64_t i) {
            constexpr int M = decltype(tile)::value;
            const float *slope = slopes + i * 2 * W;
            Vector acc[M][V];
            for (int m = 0; m < M; m++)
                for (int v = 0; v < V; v++) acc[m][v] = all(constants[i + m]);
            accumulate(acc, W, [&](int m, int64_t k) { return slope[m * 2 * W + k]; },
                       [&](int64_t k) { return table + scope[k] * n + at; });
            accumulate(acc, W, [&](int m, int64_t k) { return slope[m * 2 * W + W + k]; },
                       [&](int64_t k) { return squares + scope[k] * n + at; });
            for (int m = 0; m < M; m++)
                for (int v = 0; v < V; v++) {
                    top[v] = larger(top[v], acc[m][v]);
                    store(values + (i + m) * n + at + v * LANES, acc[m][v]);
                }
        });
        for (int v = 0; v < V; v++) store(peaks + at + v * LANES, top[v]);
        for (int64_t i = 0; i < I; i++)
            for (int v = 0; v < V; v++) {
                float *value = values + i * n + at + v * LANES;
                store(value, exponential(load(value) - top[v]));
            }
    });
}

// The sums of a product, for all rows: out_s = sum_i a_i (W_s b)_i. Keeps W b in `reach` if there is one.
void sums_upward(int64_t n, int64_t S, int64_t I, int64_t J, const float *left, const float *right, const float *W,
                 float *reach, float *out) {
    vectors(n, [&](auto count, int64_t at) {
        constexpr int V = decltype(count)::value;
        for (int64_t s = 0; s < S; s++) {
            Vector total[V] = {};
            tiles(I, [&](auto tile, int64_t i) {
                constexpr int M = decltype(tile)::value;
                const float *weights = W + (s * I + i) * J;
                Vector acc[M][V] = {};
                accumulate(acc, J, [&](int m, int64_t k) { return weights[m * J + k]; },
                           [&](int64_t k) { return right + k * n + at; });
                for (int m = 0; m < M; m++)
                    for (int v = 0; v < V; v++) {
                        const int64_t place = (i + m) * n + at + v * LANES;
                        if (reach) store(reach + s * I * n + place, acc[m][v]);
                        total[v] += acc[m][v] * load(left + place);
                    }
            });
            for (int v = 0; v < V; v++) store(out + s * n + at + v * LANES, total[v]);
        }
    });
}

// Values of an inner region: its sums, divided by the largest of each row.
void inner_upward(Block &b, int64_t level, int64_t product, bool learns) {
    const Circuit &c = b.circuit;
    const int64_t P = b.regions(level), J = b.nodes(level - 1), S = c.sums, n = b.n;
    const float *left = b.values[level - 1] + product * J * n, *right = left + P * J * n;
    const float *peak_left = b.peaks[level - 1] + product * n, *peak_right = peak_left + P * n;
    float *values = b.values[level] + product * S * n, *peaks = b.peaks[level] + product * n;
    sums_upward(n, S, J, J, left, right, c.weights[level - 1] + product * S * J * J, nullptr, values);
    for (int64_t k = 0; k < n; k += LANES) {
        Vector top = load(values + k);
        for (int64_t s = 1; s < S; s++) top = larger(top, load(values + s * n + k));
        const Vector scale = 1.0f / top;
        for (int64_t s = 0; s < S; s++) store(values + s * n + k, load(values + s * n + k) * scale);
        if (learns) store(b.tops[level] + product * n + k, top);
        store(peaks + k, logarithm(top) + load(peak_left + k) + load(peak_right + k));
    }
}

void replica_upward(Block &b, int64_t replica, bool learns) {
    const Circuit &c = b.circuit;
    const int64_t n = b.n, R = c.replicas, top = b.levels() - 1, I = b.nodes(top), J = c.depth > 0 ? I : 1;
    for (int64_t region = replica; region < b.regions(0); region += R) leaf_upward(b, region);
    for (int64_t level = 1; level < c.depth; level++)
        for (int64_t product = replica; product < b.regions(level); product += R)
            inner_upward(b, level, product, learns);
    const float *left = b.values[top] + replica * I * n, *right = c.depth > 0 ? left + R * I * n : b.ones;
    const float *peak_left = b.peaks[top] + replica * n, *peak_right = c.depth > 0 ? peak_left + R * n : nullptr;
    const int64_t first = replica * c.roots;
    const float *W = c.weights[top] + first * I * J;
    float *out = b.outs + first * n, *log_root = b.log_roots + first * n;
    sums_upward(n, c.roots, I, J, left, right, W, learns ? b.reach + first * I * n : nullptr, out);
    for (int64_t root = 0; root < c.roots; root++)
        for (int64_t k = 0; k < n; k += LANES) {
            Vector x = logarithm(load(out + root * n + k)) + load(peak_left + k) + c.log_mixing[root];
            store(log_root + root * n + k, peak_right ? x + load(peak_right + k) : x);
        }
}

// log of the sum over replicas and roots, n.
void log_probability(const Block &b, float *out) {
    const int64_t n = b.n, terms = b.circuit.replicas * b.circuit.roots;
    for (int64_t k = 0; k < n; k += LANES) {
        Vector top = all(-INFINITY), total = {};
        for (int64_t t = 0; t < terms; t++) top = larger(top, load(b.log_roots + t * n + k));
        for (int64_t t = 0; t < terms; t++) total += exponential(load(b.log_roots + t * n + k) - top);
        store(out + k, top + logarithm(total));
    }
}

// visits_m += sum over the rows of gains_m times values (n N), for `numbers` of their columns.
void sum_over_rows(int64_t n, int64_t results, int64_t numbers, const float *gains, const float *values, int64_t N,
                   float *visits) {
    vectors(numbers, [&](auto count, int64_t column) {
        constexpr int V = decltype(count)::value;
        tiles(results, [&](auto tile, int64_t first) {
            constexpr int M = decltype(tile)::value;
            float *target = visits + first * numbers + column;
            Vector acc[M][V];
            for (int m = 0; m < M; m++)
                for (int v = 0; v < V; v++)
                    acc[m][v] = load_some(target + m * numbers + v * LANES, numbers - column - v * LANES);
            accumulate(acc, n, [&](int m, int64_t k) { return gains[(first + m) * n + k]; },
                       [&](int64_t k) { return values + k * N + column; });
            for (int m = 0; m < M; m++)
                for (int v = 0; v < V; v++)
                    store_some(target + m * numbers + v * LANES, acc[m][v], numbers - column - v * LANES);
        });
    });
}

// Passes the visits of one root on to its children, whose flows are added to, and to its weights.
void root_downward(Block &b, int64_t I, int64_t J, const float *gain, const float *left, const float *right,
                   const float *reach, const float *W, float *flow_left, float *flow_right, float *visits) {
    const int64_t n = b.n;
    for (int64_t i = 0; i < I; i++)
        for (int64_t k = i * n; k < (i + 1) * n; k += LANES) {
            const Vector x = load(left + k) * load(gain + k - i * n);
            store(b.gained + k, x);
            store(flow_left + k, load(flow_left + k) + x * load(reach + k));
        }
    vectors(n, [&](auto count, int64_t at) {
        constexpr int V = decltype(count)::value;
        tiles(J, [&](auto tile, int64_t j) {
            constexpr int M = decltype(tile)::value;
            Vector acc[M][V] = {};
            accumulate(acc, I, [&](int m, int64_t k) { return W[k * J + j + m]; },
                       [&](int64_t k) { return b.gained + k * n + at; });
            for (int m = 0; m < M; m++)
                for (int v = 0; v < V; v++) {
                    const int64_t place = (j + m) * n + at + v * LANES;
                    store(flow_right + place, load(flow_right + place) + acc[m][v] * load(right + place));
                }
        });
    });
    sum_over_rows(n, I, J, b.gained, b.transposed, padded(J), visits);
}

// Passes the visits of all sums of a product on to its children, whose flows are set, and to its weights.
//
// d_ij = sum_s W_sij g_s serves both children: a_i sum_j d_ij b_j and b_j sum_i d_ij a_i. And the visits of all sums
// are one product, of g_s and the pairs a_i b_j. That is two products of matrices, and one on the way up.
void inner_downward(Block &b, int64_t S, int64_t I, int64_t J, const float *left, const float *right, const float *W,
                    float *flow_left, float *flow_right, float *visits) {
    const int64_t n = b.n, N = padded(J), row = b.pair_row();
    const float *gain = b.gain;
    std::memset(flow_left, 0, I * n * 4);
    std::memset(flow_right, 0, J * n * 4);
    vectors<2>(n, [&](auto count, int64_t at) {
        constexpr int V = decltype(count)::value;
        tiles<2>(I, [&](auto two, int64_t i) {
            constexpr int L = decltype(two)::value;
            tiles(J, [&](auto tile, int64_t j) {
                constexpr int M = decltype(tile)::value;
                const float *weights = W + i * J + j;
                Vector d[L * M][V] = {};
                accumulate(d, S, [&](int m, int64_t k) { return weights[k * I * J + m / M * J + m % M]; },
                           [&](int64_t k) { return gain + k * n + at; });
                for (int v = 0; v < V; v++) {
                    const int64_t of_i = i * n + at + v * LANES, of_j = j * n + at + v * LANES;
                    const float *a = left + of_i, *b = right + of_j;
                    float *to_left = flow_left + of_i, *to_right = flow_right + of_j;
                    for (int l = 0; l < L; l++) {
                        Vector sum = load(to_left + l * n);
                        for (int m = 0; m < M; m++) sum += d[l * M + m][v] * load(b + m * n);
                        store(to_left + l * n, sum);
                    }
                    for (int m = 0; m < M; m++) {
                        Vector sum = load(to_right + m * n);
                        for (int l = 0; l < L; l++) sum += d[l * M + m][v] * load(a + l * n);
                        store(to_right + m * n, sum);
                    }
                }
            });
        });
    });
    for (int64_t k = 0; k < J * n; k += LANES) store(flow_right + k, load(flow_right + k) * load(right + k));
    for (int64_t k = 0; k < I * n; k += LANES) store(flow_left + k, load(flow_left + k) * load(left + k));
    transpose(right, J, n, b.transposed, N);
    for (int64_t k = 0; k < n; k++)
        for (int64_t i = 0; i < I; i++) {  // whole vectors: the next i writes over the zeros behind the nodes
            const Vector a = all(left[i * n + k]);
            float *pair = b.pairs + k * row + i * J;
            for (int64_t j = 0; j < N; j += LANES) store(pair + j, a * load(b.transposed + k * N + j));
        }
    sum_over_rows(n, S, I * J, gain, b.pairs, row, visits);
}

// What the flow into a leaf region says about its leaves. In float64: variances are small differences of these sums.
void leaf_downward(const Block &b, int64_t region, const float *flow, const Statistics &out) {
    constexpr int lanes = LANES / 2;
    const Circuit &c = b.circuit;
    const int64_t I = c.inputs, W = c.width, n = b.n, N = padded(I, lanes), whole = padded(I);
    const int32_t *scope = c.scopes + region * W;
    double *mass = out.mass + region * N, *raw = out.raw + region * 2 * W * N;
    transpose(flow, I, n, b.transposed, whole);
    for (int64_t k = 0; k < n; k++)
        for (int64_t i = 0; i < N; i++) {
            b.wide_flow[k * N + i] = b.transposed[k * whole + i];
            mass[i] += b.wide_flow[k * N + i];
        }
    for (int64_t half = 0; half < 2; half++)
        tiles(W, [&](auto tile, int64_t first) {
            constexpr int M = decltype(tile)::value;
            const double *features[M];
            for (int m = 0; m < M; m++) features[m] = b.wide_table + (scope[first + m] + half * (c.variables + 1)) * n;
            double *target = raw + (half * W + first) * N;
            vectors<VECTORS, lanes>(I, [&](auto count, int64_t column) {
                constexpr int V = decltype(count)::value;
                Wide acc[M][V];
                for (int m = 0; m < M; m++)
                    for (int v = 0; v < V; v++) acc[m][v] = load(target + m * N + column + v * lanes);
                accumulate(acc, n, [&](int m, int64_t k) { return features[m][k]; },
                           [&](int64_t k) { return b.wide_flow + k * N + column; });
                for (int m = 0; m < M; m++)
                    for (int v = 0; v < V; v++) store(target + m * N + column + v * lanes, acc[m][v]);
            });
        });
}

// Expected visits of a root in each row, divided by its value: d log p / d out. Returns their sum before.
double root_gain(const Block &b, int64_t at, const float *log_prob, int64_t real) {
    const float *log_root = b.log_roots + at * b.n, *out = b.outs + at * b.n;
    double total = 0;
    for (int64_t k = 0; k < b.n; k += LANES) {
        Vector share = exponential(load(log_root + k) - load(log_prob + k));
        for (int64_t q = 0; q < LANES; q++) {
            if (k + q >= real) share[q] = 0;
            total += share[q];
        }
        store(b.gain + k, share / load(out + k));
    }
    return total;
}

// The pass downwards through one replica.
void replica_downward(Block &b, int64_t replica, const float *log_prob, int64_t real, const Statistics &out) {
    const Circuit &c = b.circuit;
    const int64_t n = b.n, R = c.replicas, top = b.levels() - 1, I = b.nodes(top), J = c.depth > 0 ? I : 1;
    const float *left = b.values[top] + replica * I * n, *right = c.depth > 0 ? left + R * I * n : b.ones;
    float *flow_left = b.flow[0], *flow_right = flow_left + I * n;
    std::memset(flow_left, 0, 2 * I * n * 4);
    transpose(right, J, n, b.transposed, padded(J));
    bool visited = false;
    for (int64_t root = 0; root < c.roots; root++) {
        const int64_t at = replica * c.roots + root;
        const double total = root_gain(b, at, log_prob, real);
        out.roots[root] += total;
        if (total == 0) continue;
        visited = true;
        root_downward(b, I, J, b.gain, left, right, b.reach + at * I * n, c.weights[top] + at * I * J, flow_left,
                      flow_right, out.visits[top] + at * I * J);
    }
    if (!visited) return;
    // flow[0] holds the children of the root: regions replica, replica + R of the level; then level by level down
    int64_t count = c.depth > 0 ? 2 : 1, here = 0;
    for (int64_t level = top; level > 0; level--, here = 1 - here, count *= 2) {
        const int64_t S = c.sums, below = b.nodes(level - 1), P = b.regions(level), pairs = below * below;
        for (int64_t q = 0; q < count; q++) {
            const int64_t product = replica + q * R;
            const float *flow = b.flow[here] + q * S * n, *values = b.values[level] + product * S * n;
            const float *tops = b.tops[level] + product * n, *a = b.values[level - 1] + product * below * n;
            for (int64_t s = 0; s < S; s++)
                for (int64_t k = 0; k < n; k += LANES)
                    store(b.gain + s * n + k, load(flow + s * n + k) / (load(values + s * n + k) * load(tops + k)));
            const int64_t first = product * S * pairs;
            float *to_left = b.flow[1 - here] + q * below * n, *to_right = to_left + count * below * n;
            inner_downward(b, S, below, below, a, a + P * below * n, c.weights[level - 1] + first, to_left, to_right,
                           out.visits[level - 1] + first);
        }
    }
    for (int64_t q = 0; q < count; q++) leaf_downward(b, replica + q * R, b.flow[here] + q * c.inputs * n, out);
}

int64_t rows_at_once(const Circuit &c, bool learns) {
    int64_t n = BLOCK;
    while (n > LANES && Block{c, n}.lay(nullptr, learns) * 4 > CACHE) n /= 2;
    return n;
}

// Blocks of rows through the pass upwards; `use` gets each, its number of rows and their log p. False: no memory.
template <class Use> bool each_block(const Circuit &c, const float *x, int64_t n, bool learns, const Use &use) {
    Denormals flushed;
    const int64_t at_once = rows_at_once(c, learns);
    for (int64_t first = 0; first < n; first += at_once) {
        const int64_t real = n - first < at_once ? n - first : at_once;
        Block block{c, padded(real)};
        float *memory = scratch.take(block.lay(nullptr, learns));
        if (!memory) return false;
        block.lay(memory, learns);
        fill_table(block, x + first * c.variables, real, learns);
        for (int64_t r = 0; r < c.replicas; r++) replica_upward(block, r, learns);
        alignas(64) float found[BLOCK];
        log_probability(block, found);
        use(block, first, real, found);
    }
    return true;
}

}  // namespace

extern "C" {

// log p of n standardized rows without missing values, n m -> n. Returns 1 if there is no memory, else 0, as all here.
int32_t log_prob(const Circuit *circuit, const float *x, int64_t n, float *out) {
    return !each_block(*circuit, x, n, false, [&](Block &, int64_t first, int64_t real, const float *found) {
        std::memcpy(out + first, found, real * 4);
    });
}

// Adds what n standardized rows say to the statistics.
int32_t statistics(const Circuit *circuit, const float *x, int64_t n, const Statistics *out) {
    return !each_block(*circuit, x, n, true, [&](Block &block, int64_t, int64_t real, const float *found) {
        for (int64_t k = 0; k < real; k++) *out->log_likelihood += found[k];
        for (int64_t r = 0; r < circuit->replicas; r++) replica_downward(block, r, found, real, *out);
    });
}

// Natural parameters of l i w leaves, as `Circuit` has them: slopes l i 2w, constants l i.
int32_t pack_leaves(const float *mean, const float *variance, const int32_t *scopes, int64_t variables,
                    int64_t regions, int64_t inputs, int64_t width, float *slopes, float *constants) {
    const int64_t all_of_region = inputs * width;
    float *logs = scratch.take(all_of_region);
    if (!logs) return 1;
    for (int64_t l = 0; l < regions; l++, mean += all_of_region, variance += all_of_region) {
        log_rows(variance, logs, all_of_region);
        int64_t filled = 0;  // a region's unfilled places are its last
        while (filled < width && scopes[l * width + filled] < variables) filled++;
        for (int64_t i = 0; i < inputs; i++, slopes += 2 * width, constants++) {
            float constant = 0.0f;
            for (int64_t w = 0; w < width; w++) {
                const float m = mean[i * width + w], inverse = 1.0f / variance[i * width + w];
                slopes[w] = m * inverse;
                slopes[width + w] = -0.5f * inverse;
                if (w < filled) constant -= 0.5f * (logs[i * width + w] + 1.8378770664f + m * slopes[w]);  // log 2 pi
            }
            *constants = constant;
        }
    }
    return 0;
}

// Moments about the current means from raw sums l 2w N and mass l N: visits, first and second, each l i w.
void leaf_moments(const float *mean, const double *mass, const double *raw, const int32_t *scopes, int64_t variables,
                  int64_t regions, int64_t inputs, int64_t width, double *visits, double *first, double *second) {
    const int64_t N = padded(inputs, LANES / 2);
    for (int64_t l = 0; l < regions; l++)
        for (int64_t i = 0; i < inputs; i++)
            for (int64_t w = 0; w < width; w++) {
                const int64_t at = (l * inputs + i) * width + w;
                const double seen = scopes[l * width + w] < variables ? mass[l * N + i] : 0.0, mu = mean[at];
                const double sum = raw[(l * 2 * width + w) * N + i], squares = raw[(l * 2 * width + width + w) * N + i];
                const double deviation = sum - seen * mu;
                visits[at] = seen;
                first[at] = deviation;
                second[at] = squares - mu * (sum + deviation);
            }
}

// The M-step of n leaves: GaussianLeaves.update in one pass.
void leaf_update(float *mean, float *variance, const double *visits, const double *first, const double *second,
                 int64_t n, double step, double prior, double inertia, double least, double most) {
    const double tiny = 1.17549435e-38, slow = inertia > tiny ? inertia : tiny;
    for (int64_t k = 0; k < n; k++) {
        const double mass = visits[k] + prior, steps = step * mass / (mass + slow), held = mass > tiny ? mass : tiny;
        const double mu = mean[k], d = (first[k] - prior * mu) / held;
        const double square = (second[k] + prior * (mu * mu + 1)) / held - variance[k] - steps * d * d;
        const double moved = variance[k] + steps * square;
        variance[k] = moved < least ? least : moved > most ? most : moved;
        mean[k] = mu + steps * d;
    }
}

// The M-step of sums, SumLayer.update in one pass: of each sum all weights, one after the other.
void sum_update(float *weights, const float *visits, int64_t sums, int64_t size, float step, float prior, float inertia,
                float least) {
    const double tiny = 1.17549435e-38;
    for (int64_t s = 0; s < sums; s++, weights += size, visits += size) {
        const double total = sum_of(visits, size) + double(prior) * size, way = step * total / (total + inertia);
        const float scale = way / (total > tiny ? total : tiny), rest = 1 - way;
        for (int64_t k = 0; k < size; k += LANES) {
            const Vector share = (load_some(visits + k, size - k) + prior) * scale;
            // what is no number stays none
            store_some(weights + k, larger(all(least), load_some(weights + k, size - k) * rest + share), size - k);
        }
        const float whole = 1 / sum_of(weights, size);
        for (int64_t k = 0; k < size; k += LANES)
            store_some(weights + k, load_some(weights + k, size - k) * whole, size - k);
    }
}
}
