// What stands behind an l4_images.
#pragma once

#include <memory>

#include "images/processor.hpp"
#include "l4export.h"

struct l4_images {
  std::shared_ptr<const l4::images::ProcessedImages> images;
};
