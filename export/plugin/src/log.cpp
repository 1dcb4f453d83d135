#include "log.h"

#include <atomic>
#include <cstdio>
#include <exception>

namespace bilateral {
namespace {

std::atomic<nvinfer1::ILoggerFinder*>& loggerFinder() {
  static std::atomic<nvinfer1::ILoggerFinder*> finder{nullptr};
  return finder;
}

std::atomic<MessageHandler>& messageHandler() {
  static std::atomic<MessageHandler> handler{nullptr};
  return handler;
}

}  // namespace

void setMessageHandler(MessageHandler handler) { messageHandler() = handler; }

void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { loggerFinder() = finder; }

void logError(const std::string& message) noexcept {
  try {
    const std::string line = "ai.bilateral::BilateralAttention: " + message;
    nvinfer1::ILoggerFinder* finder = loggerFinder();
    nvinfer1::ILogger* logger = finder != nullptr ? finder->findLogger() : nullptr;
    if (logger != nullptr) {
      logger->log(nvinfer1::ILogger::Severity::kERROR, line.c_str());
    } else if (const MessageHandler handler = messageHandler()) {
      handler(line.c_str());
    } else {
      static_cast<void>(std::fputs((line + "\n").c_str(), stderr));
    }
  } catch (...) {  // a message that cannot be written must not end the process
    static_cast<void>(std::fputs("ai.bilateral: an error could not be logged\n", stderr));
  }
}

}  // namespace bilateral
