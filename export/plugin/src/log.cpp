#include "log.h"

#include <cxxabi.h>

#include <atomic>
#include <cstdio>
#include <typeinfo>

// TensorRT 11, and TensorRT for RTX 1.7, made the logger and its finder versioned interfaces: their
// methods moved behind those of IVersionedInterface in the table of virtual functions. Headers know
// one of the two forms, a running TensorRT has the other as likely as not. So both are declared
// here, and the finder itself says which one it is: one library serves 10 and 11.
namespace bilateral {

// Not in an anonymous namespace: a compiler that sees no class derived from these there calls the
// pure virtual functions directly.
namespace forms {

using nvinfer1::AsciiChar;
using nvinfer1::IVersionedInterface;
using Severity = nvinfer1::ILogger::Severity;

// Until TensorRT 10.
class PlainLogger {
 public:
  virtual void log(Severity severity, const AsciiChar* message) noexcept = 0;

 protected:
  ~PlainLogger() = default;
};

class PlainFinder {
 public:
  virtual PlainLogger* findLogger() = 0;

 protected:
  ~PlainFinder() = default;
};

// From TensorRT 11 on.
class VersionedLogger : public IVersionedInterface {
 public:
  virtual void log(Severity severity, const AsciiChar* message) noexcept = 0;
};

class VersionedFinder : public IVersionedInterface {
 public:
  virtual VersionedLogger* findLogger() = 0;
};

}  // namespace forms

namespace {

// Whether a class is `base` or derives from it (Itanium C++ ABI, "Run-Time Type Information").
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
        finder != nullptr && (isVersioned(finder) ? logThrough<forms::VersionedFinder>(finder, line)
                                                  : logThrough<forms::PlainFinder>(finder, line));
    if (!logged) {
      static_cast<void>(std::fputs((line + "\n").c_str(), stderr));
    }
  } catch (...) {  // a message that cannot be written must not end the process
    static_cast<void>(std::fputs("ai.bilateral: an error could not be logged\n", stderr));
  }
}

}  // namespace bilateral
