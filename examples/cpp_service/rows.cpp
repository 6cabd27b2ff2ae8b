#include "rows.hpp"

#include <algorithm>

namespace service {
namespace {

constexpr std::size_t kWorthACopy = 16;  // tokens: to compute fewer takes no longer than to copy a row

Session session_of(const Model& model, std::int32_t rows, std::int64_t capacity) {
  l4_session_options options = L4_SESSION_OPTIONS_DEFAULT;
  options.rows = rows;
  options.capacity = capacity;
  return made<Session>(l4_session_create, model.engine.get(), &options);
}

std::size_t capacity_of(const Session& session) {
  l4_session_info info{};
  info.size = sizeof info;
  check(l4_session_get_info(session.get(), &info));
  return static_cast<std::size_t>(info.capacity);
}

l4_row_tokens tokens_of(std::int32_t row, const std::int32_t* ids, std::size_t count, const l4_images* images) {
  return {sizeof(l4_row_tokens), row, ids, count, images};
}

}  // namespace

Rows::Rows(const Model& model, std::int32_t rows, std::int64_t capacity, std::size_t piece)
    : model_(model), piece_(piece), session_(session_of(model, rows, capacity)), capacity_(capacity_of(session_)) {
  for (std::int32_t row = 0; row < rows; ++row) seats_.push_back({row});
}

void Rows::admit(std::unique_ptr<Request> request) {
  Seat* best = nullptr;
  std::size_t most = 0;
  for (Seat& seat : seats_) {
    if (seat.request != nullptr) continue;
    const std::size_t count = beginning(seat, request->prompt());
    const std::size_t continued = count == seat.held.ids.size() ? count : 0;
    if (best == nullptr || continued > most || (continued == most && seat.left < best->left))
      best = &seat, most = continued;
  }
  Seat& seat = *best;
  seat.request = std::move(request);
  ++running_;
  prompting_.push_back(&seat);
  try {
    const std::size_t count = beginning(seat, seat.request->prompt());
    cut(seat, count);
    seat.request->reuse(count);
  } catch (const std::exception& error) {
    failed(seat, error.what());
  }
}

void Rows::advance() {
  for (Seat& seat : seats_) {  // a free row needs room for the placeholder that it may be fed
    if (seat.request == nullptr && seat.held.ids.size() == capacity_) cut(seat, 0);
  }
  for (std::size_t spent = 0; !prompting_.empty() && spent < piece_;) spent += feed(*prompting_.front());
  step();
}

void Rows::leave_unwanted() {
  for (Seat& seat : seats_) {
    if (seat.request != nullptr && seat.request->is_unwanted()) cancel(seat);
  }
}

void Rows::cancel_all() {
  for (Seat& seat : seats_) {
    if (seat.request != nullptr) cancel(seat);
  }
}

void Rows::fail_all(const std::string& why) {
  for (Seat& seat : seats_) {
    if (seat.request != nullptr) failed(seat, why);
  }
}

void Rows::cancel(Seat& seat) {
  seat.request->cancel();
  leave(seat);
}

// Feed a piece of a row's prompt; the number of its tokens.
std::size_t Rows::feed(Seat& seat) {
  try {
    copy_longer(seat);
    const Prompt& prompt = seat.request->prompt();
    const std::size_t at = seat.held.ids.size();
    const l4_images* image = nullptr;
    const std::size_t end = seat.request->piece_end(at, piece_, &image);
    const l4_row_tokens tokens = tokens_of(seat.row, prompt.ids.data() + at, end - at, image);
    const float* logits = nullptr;
    check(l4_session_append(session_.get(), &tokens, 1, 1, &logits, nullptr));
    seat.held.ids.insert(seat.held.ids.end(), prompt.ids.begin() + static_cast<std::ptrdiff_t>(at),
                         prompt.ids.begin() + static_cast<std::ptrdiff_t>(end));
    for (const Placed& placed : prompt.images) {
      if (placed.start >= at && placed.start < end) seat.held.images.push_back(placed);
    }
    prompting_.pop_front();
    if (end < prompt.ids.size()) {
      prompting_.push_back(&seat);
    } else {
      choose(seat, logits + static_cast<std::size_t>(seat.row) * model_.vocab());
    }
    return end - at;
  } catch (const std::exception& error) {
    failed(seat, error.what());
    return 0;
  }
}

// Feed the last token of every row that has one.
void Rows::step() {
  std::vector<Seat*> seats;
  Ids last;
  for (Seat& seat : seats_) {
    if (seat.request != nullptr && seat.request->has_begun())
      seats.push_back(&seat), last.push_back(seat.request->last_token());
  }
  if (seats.empty()) return;
  std::vector<l4_row_tokens> tokens;
  for (std::size_t i = 0; i < seats.size(); ++i) tokens.push_back(tokens_of(seats[i]->row, &last[i], 1, nullptr));
  const float* logits = nullptr;
  try {
    check(l4_session_append(session_.get(), tokens.data(), tokens.size(), 1, &logits, nullptr));
  } catch (const std::exception& error) {
    for (Seat* seat : seats) failed(*seat, error.what());
    return;
  }
  for (std::size_t i = 0; i < seats.size(); ++i) {
    seats[i]->held.ids.push_back(last[i]);
    choose(*seats[i], logits + static_cast<std::size_t>(seats[i]->row) * model_.vocab());
  }
}

void Rows::choose(Seat& seat, const float* logits) {
  if (seat.request->choose(logits, seat.held.ids.size() == capacity_)) leave(seat);
}

// Free a row; what it holds stays.
void Rows::leave(Seat& seat) {
  seat.request.reset();
  seat.left = ++clock_;
  --running_;
  prompting_.erase(std::remove(prompting_.begin(), prompting_.end(), &seat), prompting_.end());
}

void Rows::failed(Seat& seat, const std::string& why) {
  seat.request->fail(why);
  leave(seat);
}

// Let a row go back to its first `length` tokens.
void Rows::cut(Seat& seat, std::size_t length) {
  const std::size_t held = seat.held.ids.size();
  if (length == held) return;
  check(l4_session_rewind_row(session_.get(), seat.row, static_cast<std::int64_t>(held - length)));
  seat.held.ids.resize(length);
  std::vector<Placed>& images = seat.held.images;
  images.erase(std::remove_if(images.begin(), images.end(), [&](const Placed& image) { return image.start >= length; }),
               images.end());
}

// Begin with what another row holds, where that is worth it.
void Rows::copy_longer(Seat& seat) {
  const Prompt& prompt = seat.request->prompt();
  const std::size_t had = seat.held.ids.size();
  const Seat* source = &seat;
  std::size_t most = had;
  for (const Seat& other : seats_) {
    const std::size_t count = beginning(other, prompt);
    if (&other != &seat && count >= had + kWorthACopy && count > most) source = &other, most = count;
  }
  if (source == &seat) return;
  check(l4_session_copy_row(session_.get(), seat.row, session_.get(), source->row));
  seat.held = source->held;
  cut(seat, most);
  seat.request->reuse(most - had);
}

// The most tokens with which a row and a prompt begin alike, and to which the row can go back. At least one token of
// the prompt is left, whose logits are needed. Images are alike where their pixels are, and are taken over whole.
std::size_t Rows::beginning(const Seat& seat, const Prompt& prompt) const {
  const Prompt& held = seat.held;
  const std::size_t most = std::min(held.ids.size(), prompt.ids.size() - 1);
  const auto differs =
      std::mismatch(held.ids.begin(), held.ids.begin() + static_cast<std::ptrdiff_t>(most), prompt.ids.begin());
  auto count = static_cast<std::size_t>(differs.first - held.ids.begin());
  const auto only_in = [&](const std::vector<Placed>& these, const std::vector<Placed>& those) {
    for (const Placed& image : these) {
      if (std::find(those.begin(), those.end(), image) == those.end()) count = std::min(count, image.start);
    }
  };
  only_in(held.images, prompt.images);
  only_in(prompt.images, held.images);
  // with a sliding cache, keys of earlier chunks are gone: a row goes back within its chunk, or to a chunk's beginning
  const auto chunk = static_cast<std::size_t>(model_.info.prefill_cut);
  while (true) {
    const auto inside = std::find_if(prompt.images.begin(), prompt.images.end(),
                                     [&](const Placed& image) { return image.start < count && count < image.stop; });
    if (inside != prompt.images.end()) {
      count = inside->start;
    } else if (chunk != 0 && count / chunk != held.ids.size() / chunk && count % chunk != 0) {
      count -= count % chunk;
    } else {
      return count;
    }
  }
}

}  // namespace service
