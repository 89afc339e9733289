// SPDX-License-Identifier: Apache-2.0
// SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
// Memory files (memfd) and their seals. A seal is a promise of the kernel that pages shared between
// processes don't vanish (F_SEAL_SHRINK; reading them would raise SIGBUS) or don't change
// (F_SEAL_WRITE).
#pragma once

#include <cstddef>
#include <string>

#include "base/unique_fd.h"

namespace dwdp {

// Creates a file of zeroes whose size is sealed.
UniqueFd CreateMemoryFile(const std::string& name, std::size_t num_bytes);

// Seals the file's contents, then its set of seals. No writable mapping may be left. Returns false
// if the kernel can't seal the contents.
bool SealContents(int fd);

// Opens the file a second time, read-only. Mappings of the new descriptor don't prevent sealing, as
// those of a duplicate would. They also work on kernels that refuse any shared mapping of a sealed
// file through an O_RDWR descriptor.
UniqueFd ReopenReadOnly(int fd);

struct ReceivedFile {
  UniqueFd fd;  // read-only
  bool is_write_sealed;
};

// Checks the size and the seals of a peer's file before it is mapped. Owns `fd` from here on, and
// closes it if it refuses the file.
ReceivedFile AcceptMemoryFile(UniqueFd fd, std::size_t num_bytes, bool require_write_seal);

}  // namespace dwdp
