// SPDX-License-Identifier: Apache-2.0
//
// RE2 behind a C seam. No exception leaves this file.

#include "regex.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>
#include <re2/re2.h>
#include <string>

struct na_regex {
  RE2 re;
  na_regex(const re2::StringPiece &pattern, const RE2::Options &options) : re(pattern, options) {}
};

namespace {

constexpr int64_t kMaxMemory = 1 << 20;

void set_error(char *error, size_t size, const std::string &message) {
  if (size)
    snprintf(error, size, "%s", message.c_str());
}

} // namespace

int na_regex_new(const char *pattern, bool ignore_case, na_regex **out, char *error, size_t error_size) {
  try {
    RE2::Options options(RE2::Quiet);
    options.set_max_mem(kMaxMemory);
    options.set_case_sensitive(!ignore_case);
    na_regex *regex = new na_regex(pattern, options);
    if (!regex->re.ok()) {
      set_error(error, error_size, "invalid regular expression '" + std::string(pattern) + "': " + regex->re.error());
      delete regex;
      return -EINVAL;
    }
    *out = regex;
    return 0;
  } catch (const std::bad_alloc &) {
    set_error(error, error_size, "out of memory");
    return -ENOMEM;
  }
}

void na_regex_free(na_regex *regex) {
  delete regex;
}

bool na_regex_full(const na_regex *regex, const char *text, size_t n) {
  try {
    return RE2::FullMatch(re2::StringPiece(text, n), regex->re);
  } catch (const std::bad_alloc &) {
    return false;
  }
}

long na_regex_replace(const na_regex *regex, const char *text, size_t n, const char *substitution, char *out,
                      size_t size) {
  try {
    std::string result(text, n);
    RE2::GlobalReplace(&result, regex->re, substitution);
    if (result.size() > size)
      return -ENOSPC;
    memcpy(out, result.data(), result.size());
    return static_cast<long>(result.size());
  } catch (const std::bad_alloc &) {
    return -ENOMEM;
  }
}

bool na_regex_check_substitution(const na_regex *regex, const char *substitution, char *error, size_t error_size) {
  try {
    std::string why;
    if (regex->re.CheckRewriteString(substitution, &why))
      return true;
    set_error(error, error_size, "invalid substitution '" + std::string(substitution) + "': " + why);
  } catch (const std::bad_alloc &) {
    set_error(error, error_size, "out of memory");
  }
  return false;
}
