// What the core throws. Bindings translate; worker threads catch and hand the message to the consumer.
#pragma once

#include <stdexcept>
#include <string>

namespace dp4tl {

struct Error : std::runtime_error {  // a file or record that cannot be read
  using std::runtime_error::runtime_error;
};

}  // namespace dp4tl
