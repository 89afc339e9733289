// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
#include "findings.h"

namespace fake_cuda {

CUresult Findings::Enter(const std::string& symbol) {
  const int call = ++calls_[symbol];
  const auto fault = faults_.find(symbol);
  if (fault == faults_.end() || fault->second.nth != call) return CUDA_SUCCESS;
  return fault->second.result;
}

void Findings::Fail(const std::string& symbol, int nth, CUresult result) {
  faults_[symbol] = {calls_[symbol] + nth, result};
}

int Findings::delay_ms(const std::string& symbol) const {
  const auto found = delays_ms_.find(symbol);
  return found == delays_ms_.end() ? 0 : found->second;
}

int Findings::calls(const std::string& symbol) const {
  const auto found = calls_.find(symbol);
  return found == calls_.end() ? 0 : found->second;
}

std::string Findings::violations() const {
  std::string text;
  for (const auto& line : violations_) text += line + "\n";
  return text;
}

void Findings::Reset() {
  calls_.clear();
  faults_.clear();
  delays_ms_.clear();
  violations_.clear();
}

Findings& findings() {
  static Findings all;
  return all;
}

}  // namespace fake_cuda
