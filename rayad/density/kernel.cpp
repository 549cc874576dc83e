// A circuit's passes over its rows, compiled: the same sums as rayad/density/spn.py, in float32.
//
// Letters, as there: n rows, m variables, l leaf regions, w variables of a region, i and j nodes of a region,
// s sums, c roots, r replicas, p products. Regions of replica r are r, r + R, r + 2R, ... at every level, and the
// children of product p are regions p and p + P of the level below, so one replica is a tree that stays in the cache.
//
// Rows go through in blocks. The nodes of a region lie in the lanes of vectors, padded with zeros to whole vectors
// (leading dimension `N` below); rows are broadcast. Every product of matrices is then one tile of `ROWS` rows times
// `COLUMNS` vectors that lives in registers.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

// Compilers would rather load a number again for every product, and processors load no more than two vectors a cycle.
#if defined(__SSE__)
#define IN_A_REGISTER(x) asm("" : "+x"(x))
#else
#define IN_A_REGISTER(x)
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 8, COLUMNS = 3;
#elif defined(__AVX2__)
constexpr int LANES = 8, ROWS = 4, COLUMNS = 3;
#else
constexpr int LANES = 4, ROWS = 4, COLUMNS = 3;
#endif

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
// Halves of a vector on each other, again and again.
template <class Join> inline float folded(Vector x, const Join &join) {
    Whole lane;
    for (int k = 0; k < LANES; k++) lane[k] = k;
    for (int half = LANES / 2; half > 0; half /= 2) x = join(x, __builtin_shuffle(x, lane ^ half));
    return x[0];
}
inline float largest(Vector x) { return folded(x, larger); }
inline float sum(Vector x) {
    return folded(x, [](Vector a, Vector b) { return a + b; });
}
template <class To, class From> inline To bits(From x) {
    To y;
    std::memcpy(&y, &x, sizeof y);
    return y;
}

// exp of x <= 0, and 0 below NEGLIGIBLE; relative error 2.4e-7. A polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2], fitted
// to the relative error (3e-9), and a power of two that is added to the exponent.
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

// acc[m][v] += sum_k a(m, k) b[k][v], in registers.
template <class T, int M, int V, class Number, class At>
inline void accumulate(T (&acc)[M][V], int64_t depth, const At &a, const Number *b, int64_t stride) {
    constexpr int lanes = sizeof(T) / sizeof(Number);
    for (int64_t k = 0; k < depth; k++, b += stride) {
        T right[V];
        for (int v = 0; v < V; v++) {
            right[v] = load(b + v * lanes);
            IN_A_REGISTER(right[v]);
        }
        for (int m = 0; m < M; m++) {
            T left = a(m, k) - T{};
            for (int v = 0; v < V; v++) acc[m][v] += left * right[v];
        }
    }
}

// Runs `body` with the number of vectors as a constant, for all of a region's vectors.
template <int lanes = LANES, class Body> inline void columns(int64_t N, const Body &body) {
    int64_t v = 0, vectors = N / lanes;
    for (; v + COLUMNS <= vectors; v += COLUMNS) body(std::integral_constant<int, COLUMNS>{}, v * lanes);
    if (vectors - v == 2) body(std::integral_constant<int, 2>{}, v * lanes);
    if (vectors - v == 1) body(std::integral_constant<int, 1>{}, v * lanes);
}

// Runs `body` with the number of rows as a constant, for `count` rows of a result that is no multiple of ROWS.
template <class Body> inline void rows(int64_t count, const Body &body) {
    int64_t m = 0;
    for (; m + ROWS <= count; m += ROWS) body(std::integral_constant<int, ROWS>{}, m);
    for (; m < count; m++) body(std::integral_constant<int, 1>{}, m);
}

inline int64_t padded(int64_t nodes) { return (nodes + LANES - 1) / LANES * LANES; }

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

struct Denormals {  // counted as zero while this lives: they are slow, and sums do not notice
#if defined(__SSE__)
    unsigned before = _mm_getcsr();
    Denormals() { _mm_setcsr(before | 0x8040); }
    ~Denormals() { _mm_setcsr(before); }
#endif
};

}  // namespace

extern "C" {

// Sizes and parameters of a circuit; the packed parameters are made by `pack_*`.
struct Circuit {
    int64_t variables, replicas, depth, width, inputs, sums, roots;
    const int32_t *scopes;        // l w; unfilled places hold `variables`
    const float *slopes;          // l 2w N: coefficients of z, then of z^2
    const float *constants;       // l N, -inf in the padding
    const float *const *forward;  // of each sum layer, from the bottom up: p s j N, lanes are i
    const float *const *reverse;  // the same weights as p s i N, lanes are j; only for statistics
    const float *log_mixing;      // c
};

// What rows say; added to. `visits` lack the factor W, as in sums.py.
struct Statistics {
    double *log_likelihood;  // 1
    double *roots;           // c
    double *mass;            // l N
    double *raw;             // l 2w N
    float *const *visits;    // of each sum layer: p s i N
};

int32_t lanes() { return LANES; }
}

namespace {

// One block of rows: where its numbers lie.
struct Block {
    const Circuit &circuit;
    int64_t n, N, S;      // rows, padded nodes of a leaf region and of an inner region
    int64_t table_row;    // floats between rows of the table
    float *table;         // 2 (m + 1) x n: z, a row of zeros, z^2, a row of zeros
    float **values;       // level -> region n N, levels from the leaves up
    float **peaks;        // level -> region n
    float *reach;         // r c n N: W b of the root
    float *outs;          // r c n
    float *log_roots;     // r c n
    float *flow[2];       // two levels of n N of one replica, for the pass downwards
    float *gained;        // n N
    float *through;       // n N, and n numbers behind it
    double *wide_table;   // the table, and one region's flow, in float64
    double *wide_flow;

    int64_t nodes(int64_t level) const { return level == 0 ? circuit.inputs : circuit.sums; }
    int64_t lead(int64_t level) const { return level == 0 ? N : S; }
    int64_t regions(int64_t level) const { return circuit.replicas << (circuit.depth - level); }
};

int64_t floats_of(const Circuit &c, int64_t n) {
    int64_t N = padded(c.inputs), S = padded(c.sums), widest = N > S ? N : S, total = 6 * (c.variables + 1) * (n + 16) + 2 * n * N;
    int64_t levels = c.depth > 0 ? c.depth : 1;
    for (int64_t level = 0; level < levels; level++)
        total += (c.replicas << (c.depth - level)) * n * ((level == 0 ? N : S) + 1);
    int64_t tops = c.depth > 1 ? S : N;
    total += c.replicas * c.roots * n * (tops + 2);
    total += 2 * (int64_t(1) << c.depth) * n * widest + 2 * n * widest;
    return total + 64 * 16;
}

int64_t rows_at_once(const Circuit &c) {
    int64_t n = BLOCK;
    while (n > 2 * ROWS && floats_of(c, n) * 4 > CACHE) n /= 2;
    return n / ROWS * ROWS;
}

// n rows of m variables to the table; rows beyond `real` are zeros.
void fill_table(Block &b, const float *x, int64_t real, bool wide) {
    int64_t M = b.circuit.variables, T = b.table_row;
    for (int64_t v = 0; v <= M; v++)
        for (int64_t n = 0; n < b.n; n++) {
            float z = v < M && n < real ? x[n * M + v] : 0.0f;
            b.table[v * T + n] = z;
            b.table[(v + M + 1) * T + n] = z * z;
            if (!wide) continue;
            b.wide_table[v * T + n] = z;
            b.wide_table[(v + M + 1) * T + n] = double(z) * z;
        }
}

// Densities of a leaf region, divided by the largest of each row.
void leaf_upward(Block &b, int64_t region) {
    const Circuit &c = b.circuit;
    const int64_t N = b.N, W = c.width, T = b.table_row;
    const int32_t *scope = c.scopes + region * W;
    const float *slopes = c.slopes + region * 2 * W * N, *constant = c.constants + region * N;
    float *values = b.values[0] + region * b.n * N, *peaks = b.peaks[0] + region * b.n;
    const float *squares = b.table + (c.variables + 1) * T;
    for (int64_t n = 0; n < b.n; n += ROWS) {
        Vector top[ROWS];
        for (int m = 0; m < ROWS; m++) top[m] = all(-INFINITY);
        columns(N, [&](auto vectors, int64_t column) {
            constexpr int V = decltype(vectors)::value;
            Vector acc[ROWS][V];
            for (int m = 0; m < ROWS; m++)
                for (int v = 0; v < V; v++) acc[m][v] = load(constant + column + v * LANES);
            accumulate(acc, W, [&](int m, int64_t k) { return b.table[scope[k] * T + n + m]; }, slopes + column, N);
            accumulate(acc, W, [&](int m, int64_t k) { return squares[scope[k] * T + n + m]; },
                       slopes + W * N + column, N);
            for (int m = 0; m < ROWS; m++)
                for (int v = 0; v < V; v++) {
                    top[m] = larger(top[m], acc[m][v]);
                    store(values + (n + m) * N + column + v * LANES, acc[m][v]);
                }
        });
        for (int m = 0; m < ROWS; m++) {
            float peak = largest(top[m]);
            peaks[n + m] = peak;
            float *row = values + (n + m) * N;
            for (int64_t k = 0; k < N; k += LANES) store(row + k, exponential(load(row + k) - peak));
        }
    }
}

// One sum of a product, for all rows: out[n stride] = a (W b). Keeps W b in `reach` if there is one.
void sum_upward(int64_t n_rows, int64_t J, int64_t N, const float *a, const float *right, const float *W, float *reach,
                float *out, int64_t stride) {
    for (int64_t n = 0; n < n_rows; n += ROWS) {
        Vector total[ROWS] = {};
        columns(N, [&](auto vectors, int64_t column) {
            constexpr int V = decltype(vectors)::value;
            Vector acc[ROWS][V] = {};
            if (right)
                accumulate(acc, J, [&](int m, int64_t k) { return right[(n + m) * N + k]; }, W + column, N);
            else
                for (int m = 0; m < ROWS; m++)
                    for (int v = 0; v < V; v++) acc[m][v] = load(W + column + v * LANES);
            for (int m = 0; m < ROWS; m++)
                for (int v = 0; v < V; v++) {
                    int64_t at = (n + m) * N + column + v * LANES;
                    if (reach) store(reach + at, acc[m][v]);
                    total[m] += acc[m][v] * load(a + at);
                }
        });
        for (int m = 0; m < ROWS; m++) out[(n + m) * stride] = sum(total[m]);
    }
}

void log_rows(const float *x, float *out, int64_t n) {
    int64_t k = 0;
    for (; k + LANES <= n; k += LANES) store(out + k, logarithm(load(x + k)));
    for (; k < n; k++) out[k] = logarithm(all(x[k]))[0];
}

// Values of an inner region: its sums, divided by the largest of each row.
void inner_upward(Block &b, int64_t level, int64_t product) {
    const Circuit &c = b.circuit;
    const int64_t P = b.regions(level), below = b.lead(level - 1), J = b.nodes(level - 1), S = b.S, n = b.n;
    const float *left = b.values[level - 1] + product * n * below, *right = left + P * n * below;
    const float *peak_left = b.peaks[level - 1] + product * n, *peak_right = peak_left + P * n;
    const float *W = c.forward[level - 1] + product * c.sums * J * below;
    float *values = b.values[level] + product * n * S, *peaks = b.peaks[level] + product * n;
    std::memset(values, 0, n * S * 4);
    for (int64_t s = 0; s < c.sums; s++) sum_upward(n, J, below, left, right, W + s * J * below, nullptr, values + s, S);
    for (int64_t k = 0; k < n; k++) {
        Vector top = {};
        for (int64_t s = 0; s < S; s += LANES) top = larger(top, load(values + k * S + s));
        float peak = largest(top), scale = 1 / peak;
        for (int64_t s = 0; s < S; s += LANES) store(values + k * S + s, load(values + k * S + s) * scale);
        peaks[k] = peak;
    }
    // from here on the logarithm
    log_rows(peaks, peaks, n);
    for (int64_t k = 0; k < n; k++) peaks[k] += peak_left[k] + peak_right[k];
}

void replica_upward(Block &b, int64_t replica, bool keep) {
    const Circuit &c = b.circuit;
    const int64_t n = b.n, R = c.replicas;
    for (int64_t region = replica; region < b.regions(0); region += R) leaf_upward(b, region);
    for (int64_t level = 1; level < c.depth; level++)
        for (int64_t product = replica; product < b.regions(level); product += R) inner_upward(b, level, product);
    const int64_t top = c.depth > 0 ? c.depth - 1 : 0, N = b.lead(top), J = c.depth > 0 ? b.nodes(top) : 1;
    const float *left = b.values[top] + replica * n * N, *right = c.depth > 0 ? left + R * n * N : nullptr;
    const float *peak_left = b.peaks[top] + replica * n, *peak_right = c.depth > 0 ? peak_left + R * n : nullptr;
    for (int64_t root = 0; root < c.roots; root++) {
        const int64_t at = replica * c.roots + root;
        float *out = b.outs + at * n, *log_root = b.log_roots + at * n;
        const float *W = c.forward[c.depth > 0 ? c.depth - 1 : 0] + at * J * N;
        sum_upward(n, J, N, left, right, W, keep ? b.reach + at * n * N : nullptr, out, 1);
        log_rows(out, log_root, n);
        for (int64_t k = 0; k < n; k++)
            log_root[k] += peak_left[k] + (peak_right ? peak_right[k] : 0.0f) + c.log_mixing[root];
    }
}

// log of the sum over replicas and roots, n.
void log_probability(const Block &b, float *out) {
    const int64_t n = b.n, terms = b.circuit.replicas * b.circuit.roots;
    for (int64_t k = 0; k < n; k += LANES) {  // the last vector may be filled in part
        int64_t count = n - k < LANES ? n - k : LANES;
        Vector top = all(-INFINITY), total = {};
        auto at = [&](int64_t t) {
            Vector x = {};
            std::memcpy(&x, b.log_roots + t * n + k, 4 * count);
            return x;
        };
        for (int64_t t = 0; t < terms; t++) top = larger(top, at(t));
        for (int64_t t = 0; t < terms; t++) total += exponential(at(t) - top);
        Vector found = top + logarithm(total);
        std::memcpy(out + k, &found, 4 * count);
    }
}

// Passes the visits of one sum on to its children and its weights.
void sum_downward(int64_t n_rows, int64_t I, int64_t N, const float *gain, const float *left, const float *right,
                  const float *reach, const float *reverse, float *flow_left, float *flow_right, float *visits,
                  float *gained) {
    for (int64_t n = 0; n < n_rows; n++)
        for (int64_t k = 0; k < N; k += LANES) {
            Vector x = load(left + n * N + k) * gain[n];
            store(gained + n * N + k, x);
            store(flow_left + n * N + k, load(flow_left + n * N + k) + x * load(reach + n * N + k));
        }
    if (!right) {
        for (int64_t n = 0; n < n_rows; n++)
            for (int64_t k = 0; k < N; k += LANES)
                store(visits + k, load(visits + k) + load(gained + n * N + k));
        return;
    }
    for (int64_t n = 0; n < n_rows; n += ROWS)
        columns(N, [&](auto vectors, int64_t column) {
            constexpr int V = decltype(vectors)::value;
            Vector acc[ROWS][V] = {};
            accumulate(acc, I, [&](int m, int64_t k) { return gained[(n + m) * N + k]; }, reverse + column, N);
            for (int m = 0; m < ROWS; m++)
                for (int v = 0; v < V; v++) {
                    int64_t at = (n + m) * N + column + v * LANES;
                    store(flow_right + at, load(flow_right + at) + acc[m][v] * load(right + at));
                }
        });
    rows(I, [&](auto tile, int64_t i) {
        constexpr int M = decltype(tile)::value;
        columns(N, [&](auto vectors, int64_t column) {
            constexpr int V = decltype(vectors)::value;
            Vector acc[M][V];
            for (int m = 0; m < M; m++)
                for (int v = 0; v < V; v++) acc[m][v] = load(visits + (i + m) * N + column + v * LANES);
            accumulate(acc, n_rows, [&](int m, int64_t k) { return gained[k * N + i + m]; }, right + column, N);
            for (int m = 0; m < M; m++)
                for (int v = 0; v < V; v++) store(visits + (i + m) * N + column + v * LANES, acc[m][v]);
        });
    });
}

// What the flow into a leaf region says about its leaves. In float64: variances are small differences of these sums.
void leaf_downward(const Block &b, int64_t region, const float *flow, const Statistics &out) {
    constexpr int lanes = LANES / 2;
    const Circuit &c = b.circuit;
    const int64_t N = b.N, W = c.width, T = b.table_row, n_rows = b.n;
    const int32_t *scope = c.scopes + region * W;
    double *mass = out.mass + region * N, *raw = out.raw + region * 2 * W * N;
    for (int64_t k = 0; k < n_rows * N; k++) b.wide_flow[k] = flow[k];
    for (int64_t n = 0; n < n_rows; n++)
        for (int64_t k = 0; k < N; k++) mass[k] += b.wide_flow[n * N + k];
    for (int64_t half = 0; half < 2; half++)
        rows(W, [&](auto tile, int64_t first) {
            constexpr int M = decltype(tile)::value;
            const double *features[M];
            for (int m = 0; m < M; m++) features[m] = b.wide_table + (scope[first + m] + half * (c.variables + 1)) * T;
            double *target = raw + (half * W + first) * N;
            columns<lanes>(N, [&](auto vectors, int64_t column) {
                constexpr int V = decltype(vectors)::value;
                Wide acc[M][V];
                for (int m = 0; m < M; m++)
                    for (int v = 0; v < V; v++) acc[m][v] = load(target + m * N + column + v * lanes);
                accumulate(acc, n_rows, [&](int m, int64_t k) { return features[m][k]; }, b.wide_flow + column, N);
                for (int m = 0; m < M; m++)
                    for (int v = 0; v < V; v++) store(target + m * N + column + v * lanes, acc[m][v]);
            });
        });
}

// The pass downwards through one replica.
void replica_downward(Block &b, int64_t replica, const float *log_prob, int64_t real, const Statistics &out) {
    const Circuit &c = b.circuit;
    const int64_t n = b.n, R = c.replicas, top = c.depth > 0 ? c.depth - 1 : 0, N = b.lead(top);
    const int64_t I = c.depth > 0 ? b.nodes(top) : 1, children = c.depth > 0 ? 2 : 1;
    const float *left = b.values[top] + replica * n * N, *right = c.depth > 0 ? left + R * n * N : nullptr;
    float *flow_left = b.flow[0], *flow_right = flow_left + n * N;
    std::memset(flow_left, 0, children * n * N * 4);
    bool visited = false;
    for (int64_t root = 0; root < c.roots; root++) {
        const int64_t at = replica * c.roots + root;
        float *gain = b.log_roots + at * n;  // its last use: from logarithms to d log p / d out
        const float *outs = b.outs + at * n;
        double total = 0;
        for (int64_t k = 0; k < n; k += LANES) {
            int64_t count = n - k < LANES ? n - k : LANES;
            Vector x = {}, lp = {};
            std::memcpy(&x, gain + k, 4 * count);
            std::memcpy(&lp, log_prob + k, 4 * count);
            x = exponential(x - lp);
            for (int64_t q = 0; q < count; q++) {
                float share = k + q < real ? x[q] : 0.0f;
                total += share;
                gain[k + q] = share / outs[k + q];
            }
        }
        out.roots[root] += total;
        if (total == 0) continue;
        visited = true;
        const int64_t layer = c.depth > 0 ? c.depth - 1 : 0;
        sum_downward(n, I, N, gain, left, right, b.reach + at * n * N, c.reverse[layer] + at * I * N,
                     flow_left, flow_right, out.visits[layer] + at * I * N, b.gained);
    }
    if (!visited) return;
    // flow[0] holds the children of the root: regions replica, replica + R of the level; then level by level down
    int64_t count = children, here = 0;
    for (int64_t level = top; level > 0; level--, here = 1 - here) {
        const int64_t below = b.lead(level - 1), J1 = b.nodes(level - 1), P = b.regions(level);
        std::memset(b.flow[1 - here], 0, 2 * count * n * below * 4);
        for (int64_t q = 0; q < count; q++) {
            const int64_t product = replica + q * R;
            float *flow = b.flow[here] + q * n * b.S;
            const float *a = b.values[level - 1] + product * n * below, *right1 = a + P * n * below;
            float *to_left = b.flow[1 - here] + q * n * below, *to_right = to_left + count * n * below;
            // d log p / d out is flow / out, with out as the children are scaled: computed again, not kept.
            for (int64_t s = 0; s < c.sums; s++) {
                const int64_t at = product * c.sums + s;
                float *gain = b.through + n * below;  // n numbers behind `through`
                sum_upward(n, J1, below, a, right1, c.forward[level - 1] + at * J1 * below, b.through, gain, 1);
                for (int64_t k = 0; k < n; k++) gain[k] = flow[k * b.S + s] / gain[k];
                sum_downward(n, J1, below, gain, a, right1, b.through, c.reverse[level - 1] + at * J1 * below,
                             to_left, to_right, out.visits[level - 1] + at * J1 * below, b.gained);
            }
        }
        count *= 2;
    }
    for (int64_t q = 0; q < count; q++) leaf_downward(b, replica + q * R, b.flow[here] + q * n * b.N, out);
}

struct Laid {  // a block's memory
    Block block;
    float *values[64], *peaks[64];
    explicit Laid(const Circuit &c, int64_t n) : block{c, n, 0, 0, 0, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, {}} {
        block.N = padded(c.inputs);
        block.S = padded(c.sums);
        block.table_row = n + 16;
        float *free = scratch.take(floats_of(c, n) + n);
        auto take = [&](int64_t floats) {
            float *found = free;
            free += (floats + 15) / 16 * 16;
            return found;
        };
        const int64_t levels = c.depth > 0 ? c.depth : 1, widest = block.N > block.S ? block.N : block.S;
        block.table = take(2 * (c.variables + 1) * block.table_row);
        for (int64_t level = 0; level < levels; level++) {
            values[level] = take(block.regions(level) * n * block.lead(level));
            peaks[level] = take(block.regions(level) * n);
        }
        block.values = values;
        block.peaks = peaks;
        block.reach = take(c.replicas * c.roots * n * block.lead(levels - 1));
        block.outs = take(c.replicas * c.roots * n);
        block.log_roots = take(c.replicas * c.roots * n);
        for (auto &flow : block.flow) flow = take((int64_t(1) << c.depth) * n * widest);
        block.gained = take(n * widest);
        block.through = take(n * widest + n);
        block.wide_table = reinterpret_cast<double *>(take(4 * (c.variables + 1) * block.table_row));
        block.wide_flow = reinterpret_cast<double *>(take(2 * n * block.N));
    }
};

// Blocks of rows through the pass upwards; `use` gets each, its number of rows and their log p. False: no memory.
template <class Use> bool each_block(const Circuit &c, const float *x, int64_t n, bool learns, const Use &use) {
    Denormals flushed;
    const int64_t at_once = rows_at_once(c);
    for (int64_t first = 0; first < n; first += at_once) {
        const int64_t real = n - first < at_once ? n - first : at_once, rounded = (real + ROWS - 1) / ROWS * ROWS;
        Laid laid(c, rounded);
        if (!scratch.data) return false;
        fill_table(laid.block, x + first * c.variables, real, learns);
        for (int64_t r = 0; r < c.replicas; r++) replica_upward(laid.block, r, learns);
        float found[BLOCK];
        log_probability(laid.block, found);
        use(laid.block, first, real, found);
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

// Natural parameters of l i w leaves, as `Circuit` has them: slopes l 2w N, constants l N.
int32_t pack_leaves(const float *mean, const float *variance, const int32_t *scopes, int64_t variables,
                    int64_t regions, int64_t inputs, int64_t width, float *slopes, float *constants) {
    const int64_t N = padded(inputs), all_of_region = inputs * width;
    float *logs = scratch.take(3 * (all_of_region + LANES));
    if (!logs) return 1;
    float *slope = logs + all_of_region + LANES, *curvature = slope + all_of_region + LANES;
    for (int64_t l = 0; l < regions; l++, slopes += 2 * width * N, constants += N) {
        const float *m = mean + l * all_of_region, *v = variance + l * all_of_region;
        log_rows(v, logs, all_of_region);
        for (int64_t k = 0; k < all_of_region; k++) {
            const float inverse = 1.0f / v[k];
            slope[k] = m[k] * inverse;
            curvature[k] = -0.5f * inverse;
            logs[k] = -0.5f * (logs[k] + 1.8378770664f + m[k] * slope[k]);  // log 2 pi
        }
        int64_t filled = 0;  // a region's unfilled places are its last
        while (filled < width && scopes[l * width + filled] < variables) filled++;
        for (int64_t i = 0; i < N; i++) {
            float constant = i < inputs ? 0.0f : -INFINITY;
            for (int64_t w = 0; i < inputs && w < filled; w++) constant += logs[i * width + w];
            constants[i] = constant;
        }
        for (int64_t w = 0; w < width; w++)
            for (int64_t i = 0; i < N; i++) {
                slopes[w * N + i] = i < inputs ? slope[i * width + w] : 0.0f;
                slopes[(width + w) * N + i] = i < inputs ? curvature[i * width + w] : 0.0f;
            }
    }
    return 0;
}

// Moments about the current means from raw sums l 2w N and mass l N: visits, first and second, each l i w.
void leaf_moments(const float *mean, const double *mass, const double *raw, const int32_t *scopes, int64_t variables,
                  int64_t regions, int64_t inputs, int64_t width, double *visits, double *first, double *second) {
    const int64_t N = padded(inputs);
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
}
