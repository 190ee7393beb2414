// The cone of a mention's centred values, and the slack that makes its bound hold for the computed scores.
//
// Bound. With unit directions z_j, any x >= 0, y = u - sum_j x_j z_j and a unit vector a with z_j.a > 0:
// kappa = max(0, max_j z_j.y / z_j.a) makes z_j.(y - kappa a) <= 0 for all j, so every z of the cone has
// u.z <= (sum_j x_j z_j + kappa a).z <= |sum_j x_j z_j + kappa a| |z| =: R |z|.
//
// Slack. e = 2^-23, twice the unit roundoff, throughout. The context that `totals` computes is c = z + delta, z in
// the cone of the (rounded) z_j, |delta| <= rho |z| with rho = (L + 16) 2 e / m and m = min_j z_j.a: every term of
// the sum is at most |z| / m long in all, since z.a >= m sum_j w_j. Hence u.c / |c| <= (R + rho |u|) / (1 - rho)
// whatever the attention was and however it was rounded. Products with u and the root add (D + 16) e |u| and
// relative (D + 32) e. A residual is a sum of D + L products, none beyond |u| or x_k: it is off by at most
// (D + L + 16) e (|u| + sum x), which is added before kappa is taken; |sum x_j z_j|^2 = sum_j x_j (t_j - y_j) is
// off by at most 2 sum x times that. Where the cone is not pointed (m < 1e-3), |u| alone bounds u.c / |c|.
#include <algorithm>
#include <cmath>

#include "prepare.h"

namespace mimic {

namespace {

constexpr double kUlp = 1.0 / (1 << 23);
constexpr double kSmallestMargin = 1e-3;
constexpr int kSteps = 400;

using Doubles = std::vector<double>;

struct Directions {
    int count = 0, width = 0;
    std::vector<float> unit;  // (count, width); rows of zero length stay zero
    std::vector<bool> zero;
    Doubles gram;  // (count, count)
};

Directions directions(const float* values, int count, int width) {
    Directions z{count, width, std::vector<float>(size_t(count) * width), std::vector<bool>(count), {}};
    const int stride = align16(width);
    Doubles columns(size_t(width) * count);
    for (int j = 0; j < count; j++) {
        double square = 0;
        for (int d = 0; d < width; d++) square += double(values[j * stride + d]) * values[j * stride + d];
        z.zero[j] = square == 0;
        const double scale = z.zero[j] ? 0 : 1 / std::sqrt(square);
        for (int d = 0; d < width; d++) {
            z.unit[size_t(j) * width + d] = float(values[j * stride + d] * scale);
            columns[size_t(d) * count + j] = z.unit[size_t(j) * width + d];
        }
    }
    z.gram.assign(size_t(count) * count, 0.0);
    for (int d = 0; d < width; d++) {
        const double* column = &columns[size_t(d) * count];
        for (int j = 0; j < count; j++) {
            for (int k = 0; k <= j; k++) z.gram[size_t(j) * count + k] += column[j] * column[k];
        }
    }
    for (int j = 0; j < count; j++) {
        for (int k = 0; k < j; k++) z.gram[size_t(k) * count + j] = z.gram[size_t(j) * count + k];
    }
    return z;
}

// Weights of the point of the directions' convex hull that is nearest to the origin: its direction has the largest
// smallest cosine to all of them. Frank-Wolfe with pairwise steps on the Gram matrix; any weights give a valid axis.
Doubles nearest_point(const Directions& z) {
    const int n = z.count;
    Doubles weights(n, 0.0), product(n, 0.0);  // product = gram weights
    int live = 0;
    for (int j = 0; j < n; j++) live += !z.zero[j];
    for (int j = 0; j < n; j++) weights[j] = z.zero[j] || !live ? 0 : 1.0 / live;
    for (int j = 0; j < n; j++) {
        for (int k = 0; k < n; k++) product[j] += z.gram[size_t(j) * n + k] * weights[k];
    }
    for (int step = 0; step < kSteps && live; step++) {
        int low = -1, high = -1;
        double square = 0;
        for (int j = 0; j < n; j++) {
            if (z.zero[j]) continue;
            square += weights[j] * product[j];
            if (low < 0 || product[j] < product[low]) low = j;
            if (weights[j] > 0 && (high < 0 || product[j] > product[high])) high = j;
        }
        if (product[low] >= 0.99 * square || square < kSmallestMargin * kSmallestMargin) break;
        const double* gl = &z.gram[size_t(low) * n];
        const double* gh = &z.gram[size_t(high) * n];
        const double curvature = gl[low] + gh[high] - 2 * gl[high];
        if (!(curvature > 0)) break;
        const double t = std::min(weights[high], (product[high] - product[low]) / curvature);
        weights[low] += t;
        weights[high] = t == weights[high] ? 0 : weights[high] - t;
        for (int j = 0; j < n; j++) product[j] += t * (gl[j] - gh[j]);
    }
    return weights;
}

// z_j . a for the unit axis a = sum_j weights_j z_j / |...|; empty if there is none.
Doubles along_axis(const Directions& z, const Doubles& weights) {
    Doubles axis(z.width, 0.0), out(z.count, 0.0);
    double square = 0;
    for (int j = 0; j < z.count; j++) {
        for (int d = 0; d < z.width; d++) axis[d] += weights[j] * z.unit[size_t(j) * z.width + d];
    }
    for (double v : axis) square += v * v;
    if (!(square > 0)) return {};
    for (int j = 0; j < z.count; j++) {
        for (int d = 0; d < z.width; d++) out[j] += z.unit[size_t(j) * z.width + d] * axis[d];
        out[j] /= std::sqrt(square);
    }
    return out;
}

void pack_steps(Arena& arena, const Directions& z, int block, Cone& cone) {
    const int all = cone.blocks * block;
    float* out = arena.floats(size_t(cone.blocks) * (z.width + all) * block);
    cone.steps = out;
    for (int b = 0; b < cone.blocks; b++) {
        for (int d = 0; d < z.width; d++, out += block) {
            for (int i = 0; i < block; i++) {
                const int j = b * block + i;
                out[i] = j < z.count ? z.unit[size_t(j) * z.width + d] : 0.0f;
            }
        }
        for (int k = 0; k < all; k++, out += block) {
            for (int i = 0; i < block; i++) {
                const int j = b * block + i;
                out[i] = j < z.count && k < z.count ? -float(z.gram[size_t(j) * z.count + k]) : 0.0f;
            }
        }
    }
}

}  // namespace

Cone make_cone(Arena& arena, const float* values, int tokens, int width, int token_block) {
    Cone cone;
    const double root = std::sqrt(double(width));
    cone.norm_scale = float(root * (1 + (2 * width + 64) * kUlp));
    if (tokens == 0) return cone;
    const Directions z = directions(values, tokens, width);
    const Doubles along = along_axis(z, nearest_point(z));
    double margin = 1;
    for (int j = 0; j < int(along.size()); j++) {
        if (!z.zero[j]) margin = std::min(margin, along[j]);
    }
    if (along.empty() || !(margin >= kSmallestMargin)) return cone;
    cone.pointed = true;
    cone.blocks = (tokens + token_block - 1) / token_block;
    const int padded = cone.blocks * token_block;
    float* axis = arena.floats(padded);
    float* inverse = arena.floats(padded);
    for (int j = 0; j < tokens; j++) {
        if (z.zero[j]) continue;
        axis[j] = float(along[j]);
        inverse[j] = float(1 / along[j] * (1 + 4 * kUlp));
    }
    cone.axis = axis;
    cone.inverse = inverse;
    const double rho = 2 * (tokens + 16) * kUlp / margin;
    cone.residual_slack = float((width + padded + 16) * kUlp);
    cone.sum_slack = float((padded + 16) * kUlp);
    cone.direction_slack = float(rho + (width + 16) * kUlp);
    cone.cone_scale = float(root * (1 + 2 * rho + (width + 32) * kUlp));
    pack_steps(arena, z, token_block, cone);
    return cone;
}

}  // namespace mimic
