// Python's + - * / // % ** on numbers, texts, lists and tuples.
#include <cmath>

#include "chat/operations.hpp"

namespace l4::chat {

namespace {

constexpr std::int64_t kExact = std::int64_t{1} << 53;  // integers up to here are doubles, too

const char* sign_of(Operator sign) {
  switch (sign) {
    case Operator::add: return "+";
    case Operator::subtract: return "-";
    case Operator::multiply: return "*";
    case Operator::divide: return "/";
    case Operator::floor_divide: return "//";
    case Operator::modulo: return "%";
    case Operator::power: return "** or pow()";
  }
  return "";
}

[[noreturn]] void not_supported(Operator sign, const Value& a, const Value& b) {
  if (a.is_undefined()) fail_undefined(a);
  if (b.is_undefined()) fail_undefined(b);
  const std::string left = type_name(a), right = type_name(b);
  if (sign == Operator::add && (a.is_text() || a.is(Kind::list) || a.is(Kind::tuple))) {
    throw type_error("can only concatenate " + left + " (not \"" + right + "\") to " + left);
  }
  throw type_error("unsupported operand type(s) for " + std::string(sign_of(sign)) + ": '" + left + "' and '" + right +
                   "'");
}

std::int64_t power_of(std::int64_t base, std::int64_t exponent) {
  std::int64_t result = 1;
  for (; exponent > 0; exponent >>= 1) {
    if ((exponent & 1) && __builtin_mul_overflow(result, base, &result)) throw overflow();
    if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) throw overflow();
  }
  return result;
}

double exact(std::int64_t value) {
  if (value > kExact || value < -kExact) {
    throw TemplateError("a division of integers beyond 53 bits, which this library does not do");
  }
  return static_cast<double>(value);
}

std::int64_t floored(std::int64_t a, std::int64_t b, bool remainder) {
  if (a == INT64_MIN && b == -1) {
    if (remainder) return 0;
    throw overflow();
  }
  const std::int64_t quotient = a / b, rest = a % b;
  const bool down = rest != 0 && (rest < 0) != (b < 0);
  return remainder ? rest + (down ? b : 0) : quotient - (down ? 1 : 0);
}

Value compute_whole(Operator sign, std::int64_t a, std::int64_t b) {
  std::int64_t result = 0;
  bool over = false;
  switch (sign) {
    case Operator::add: over = __builtin_add_overflow(a, b, &result); break;
    case Operator::subtract: over = __builtin_sub_overflow(a, b, &result); break;
    case Operator::multiply: over = __builtin_mul_overflow(a, b, &result); break;
    case Operator::divide:
      if (b == 0) throw TemplateError("ZeroDivisionError: division by zero");
      return exact(a) / exact(b);
    case Operator::floor_divide: case Operator::modulo:
      if (b == 0) throw TemplateError("ZeroDivisionError: integer division or modulo by zero");
      return floored(a, b, sign == Operator::modulo);
    case Operator::power:
      if (b >= 0) return power_of(a, b);
      if (a == 0) throw TemplateError("ZeroDivisionError: 0.0 cannot be raised to a negative power");
      return std::pow(exact(a), static_cast<double>(b));
  }
  if (over) throw overflow();
  return result;
}

// Remainder with the sign of the divisor, as Python's float_rem has it.
double modulo(double a, double b) {
  const double rest = std::fmod(a, b);
  if (rest == 0) return std::copysign(0.0, b);
  return (rest < 0) != (b < 0) ? rest + b : rest;
}

// As Python's float_floor_div, whose remainder is exact where that of `modulo` is rounded.
double floor_quotient(double a, double b) {
  const double rest = std::fmod(a, b);
  const double quotient = (a - rest) / b - (rest != 0 && (rest < 0) != (b < 0) ? 1 : 0);
  if (quotient == 0) return std::copysign(0.0, a / b);
  const double floor = std::floor(quotient);
  return quotient - floor > 0.5 ? floor + 1 : floor;
}

Value compute_number(Operator sign, double a, double b) {
  switch (sign) {
    case Operator::add: return a + b;
    case Operator::subtract: return a - b;
    case Operator::multiply: return a * b;
    case Operator::divide:
      if (b == 0) throw TemplateError("ZeroDivisionError: float division by zero");
      return a / b;
    case Operator::floor_divide:
      if (b == 0) throw TemplateError("ZeroDivisionError: float floor division by zero");
      return floor_quotient(a, b);
    case Operator::modulo:
      if (b == 0) throw TemplateError("ZeroDivisionError: float modulo");
      return modulo(a, b);
    case Operator::power: break;
  }
  if (a == 0 && b < 0 && std::isfinite(b)) {
    throw TemplateError("ZeroDivisionError: 0.0 cannot be raised to a negative power");
  }
  if (a < 0 && std::isfinite(b) && b != std::floor(b)) {
    throw TemplateError("a complex number, which this library does not compute with");
  }
  const double result = std::pow(a, b);
  if (std::isinf(result) && std::isfinite(a) && std::isfinite(b)) {
    throw TemplateError("OverflowError: (34, 'Numerical result out of range')");
  }
  return result;
}

std::vector<Value> joined(const std::vector<Value>& a, const std::vector<Value>& b, Budget& budget) {
  budget.make((a.size() + b.size()) * sizeof(Value));
  std::vector<Value> all;
  all.reserve(a.size() + b.size());
  all.insert(all.end(), a.begin(), a.end());
  all.insert(all.end(), b.begin(), b.end());
  return all;
}

// The size of `size` things `times` times, bounded before anything is made.
std::size_t multiplied(std::size_t size, std::int64_t times, std::size_t each, Budget& budget) {
  if (times <= 0 || size == 0) return 0;
  const __int128 total = static_cast<__int128>(size) * times;
  if (total * static_cast<__int128>(each) > kMostBytes) throw LimitExceeded("it needs too much memory");
  budget.make(static_cast<std::size_t>(total) * each);
  return static_cast<std::size_t>(total);
}

Value repeated(const Value& value, std::int64_t times, Budget& budget) {
  if (value.is_text()) {
    const std::string& text = value.string();
    const std::size_t size = multiplied(text.size(), times, 1, budget);
    std::string out;
    out.reserve(size);
    while (out.size() < size) out += text;
    return out;
  }
  const std::vector<Value>& items = value.sequence().items;
  const std::size_t size = multiplied(items.size(), times, sizeof(Value), budget);
  std::vector<Value> out;
  out.reserve(size);
  while (out.size() < size) out.insert(out.end(), items.begin(), items.end());
  return value.is(Kind::tuple) ? make_tuple(std::move(out)) : make_list(std::move(out));
}

bool is_repeatable(const Value& value) { return value.is_text() || value.is(Kind::list) || value.is(Kind::tuple); }

Value add_sequences(const Value& a, const Value& b, Budget& budget) {
  if (a.is_text()) {
    budget.make(a.string().size() + b.string().size());
    return a.string() + b.string();
  }
  std::vector<Value> all = joined(a.sequence().items, b.sequence().items, budget);
  return a.is(Kind::tuple) ? make_tuple(std::move(all)) : make_list(std::move(all));
}

}  // namespace

Value compute(Operator sign, const Value& a, const Value& b, Budget& budget) {
  if (a.is_whole() && b.is_whole()) return compute_whole(sign, a.whole(), b.whole());
  if (a.is_numeric() && b.is_numeric()) return compute_number(sign, a.number(), b.number());
  if (sign == Operator::add && a.kind() == b.kind() && is_repeatable(a)) return add_sequences(a, b, budget);
  if (sign == Operator::multiply && is_repeatable(a) && b.is_whole()) return repeated(a, b.whole(), budget);
  if (sign == Operator::multiply && is_repeatable(b) && a.is_whole()) return repeated(b, a.whole(), budget);
  if (sign == Operator::modulo && a.is_text()) {
    throw TemplateError("a text formatted with %, which this library does not do");
  }
  not_supported(sign, a, b);
}

Value negative(const Value& value) {
  if (value.is(Kind::number)) return -value.number();
  if (value.is_whole()) return compute_whole(Operator::subtract, 0, value.whole());
  if (value.is_undefined()) fail_undefined(value);
  throw type_error(std::string("bad operand type for unary -: '") + type_name(value) + "'");
}

Value positive(const Value& value) {
  if (value.is(Kind::number)) return value;
  if (value.is_whole()) return value.whole();
  if (value.is_undefined()) fail_undefined(value);
  throw type_error(std::string("bad operand type for unary +: '") + type_name(value) + "'");
}

}  // namespace l4::chat
