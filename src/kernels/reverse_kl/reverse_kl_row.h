// What is known of a row, or of a range of it, and how ranges are put together. For the CPU backend.
#pragma once

#include <cmath>
#include <limits>

namespace strop::reverse_kl {

// The maximum of no logits, or of logits that are all -inf.
inline constexpr float kNone = -std::numeric_limits<float>::infinity();

// What sums are relative to: the maximum, but a finite number where there is none.
inline float reference(float maximum) { return maximum == kNone ? 0.0F : maximum; }

// With a = x - reference(x_max) and b = y - reference(y_max) over the logits of a range:
struct Sums {
  float x_max = kNone, y_max = kNone;
  double x_sum = 0;    // sum exp(a)
  double y_sum = 0;    // sum exp(b)
  double product = 0;  // sum exp(a) (a - b), terms without mass being 0

  // The sums over this range and another. Only the order of calls matters for rounding.
  void add(const Sums& other) {
    Sums total;
    total.x_max = x_max > other.x_max ? x_max : other.x_max;
    total.y_max = y_max > other.y_max ? y_max : other.y_max;
    for (const Sums* part : {static_cast<const Sums*>(this), &other}) {
      const double shift_x = static_cast<double>(reference(part->x_max)) - reference(total.x_max);
      const double shift_y = static_cast<double>(reference(part->y_max)) - reference(total.y_max);
      const double scale_x = part->x_max == kNone ? 1.0 : std::exp(shift_x);
      const double scale_y = part->y_max == kNone ? 1.0 : std::exp(shift_y);
      total.x_sum += scale_x * part->x_sum;  // 0 where there is no maximum, or NaN
      total.y_sum += scale_y * part->y_sum;
      if (scale_x != 0 && part->x_sum != 0) {
        total.product += scale_x * (part->product + part->x_sum * (shift_x - shift_y));
      }
    }
    *this = total;
  }

  // Mean of a - b under the student, and the divergence. NaN where all logits of student or teacher are -inf, and
  // where one of them is NaN or +inf: also where the student has no mass.
  double mean() const { return y_sum > 0 ? product / x_sum : std::nan(""); }
  double divergence() const { return mean() - std::log(x_sum) + std::log(y_sum); }
};

// What a row's gradients need: grad = scale exp(a) (a - b - mean).
struct RowGradient {
  float x_reference, y_reference, scale, mean;
};

}  // namespace strop::reverse_kl
