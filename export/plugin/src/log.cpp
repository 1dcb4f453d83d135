#include "log.h"

#include <cxxabi.h>

#include <atomic>
#include <cstdio>
#include <typeinfo>

#include "logger_forms.h"

namespace bilateral {
namespace {

// Whether a class is `base` or derives from it (Itanium C++ ABI, "Run-Time Type Information").
// NOLINTNEXTLINE(misc-no-recursion): as deep as the hierarchy of one class
bool derivesFrom(const std::type_info& type, const std::type_info& base) {
  if (type == base) {
    return true;
  }
  if (const auto* one = dynamic_cast<const abi::__si_class_type_info*>(&type)) {
    return derivesFrom(*one->__base_type, base);
  }
  if (const auto* several = dynamic_cast<const abi::__vmi_class_type_info*>(&type)) {
    for (unsigned int i = 0; i < several->__base_count; ++i) {
      if (derivesFrom(*several->__base_info[i].__base_type, base)) {
        return true;
      }
    }
  }
  return false;
}

// The type of an object, read from where every form keeps it: the entry before its table of virtual
// functions. nullptr if the object's library was compiled without such types.
const std::type_info* dynamicType(const void* object) {
  const auto* table = *static_cast<const std::type_info* const* const*>(object);
  return table[-1];
}

bool isVersioned(const void* finder) {
  const std::type_info* type = dynamicType(finder);
  return type != nullptr && derivesFrom(*type, typeid(nvinfer1::IVersionedInterface));
}

// Whether there was a logger to take the message.
template <typename Finder>
bool logThrough(void* finder, const std::string& line) {
  auto* logger = static_cast<Finder*>(finder)->findLogger();
  if (logger == nullptr) {
    return false;
  }
  logger->log(nvinfer1::ILogger::Severity::kERROR, line.c_str());
  return true;
}

std::atomic<void*>& loggerFinder() {
  static std::atomic<void*> finder{nullptr};
  return finder;
}

}  // namespace

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { loggerFinder() = finder; }

void logError(const std::string& message) noexcept {
  try {
    const std::string line = "ai.bilateral::BilateralAttention: " + message;
    void* finder = loggerFinder();
    const bool logged =
        finder != nullptr && (isVersioned(finder) ? logThrough<VersionedFinder>(finder, line)
                                                  : logThrough<PlainFinder>(finder, line));
    if (!logged) {
      static_cast<void>(std::fputs((line + "\n").c_str(), stderr));
    }
  } catch (...) {  // a message that cannot be written must not end the process
    static_cast<void>(std::fputs("ai.bilateral: an error could not be logged\n", stderr));
  }
}

}  // namespace bilateral
