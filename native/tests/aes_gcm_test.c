/* SPDX-License-Identifier: Apache-2.0
 *
 * AES-GCM of the engine's TLS against OpenSSL's own, which is the reference here, and what it refuses.
 */
#include "aes_gcm.h"

#include <openssl/evp.h>
#include <openssl/provider.h>
#include <openssl/rand.h>
#include <string.h>

#include "cmocka_common.h"
#include "tls_library.h"

#define MAX_TEXT  (16 * 1024 + 1) /* of a TLS 1.3 record, with its content type */
#define IV_BYTES  12
#define TAG_BYTES 16

static const char *const names[] = {"AES-128-GCM", "AES-256-GCM"};
static OSSL_LIB_CTX *ours;

/* One text: what is encrypted, and what comes out. */
typedef struct text {
  unsigned char key[32], iv[IV_BYTES], additional[64], tag[TAG_BYTES];
  unsigned char plain[MAX_TEXT], out[MAX_TEXT];
  int additional_n, n;
} text;

static text *new_text(int n) {
  text *it = test_calloc(1, sizeof *it);
  RAND_bytes((unsigned char *)it, (int)offsetof(text, out));
  it->n = n;
  it->additional_n = n % (int)sizeof it->additional;
  return it;
}

static EVP_CIPHER_CTX *context_of(OSSL_LIB_CTX *library, const char *name, const text *it, int encrypt) {
  EVP_CIPHER *cipher = EVP_CIPHER_fetch(library, name, NULL);
  EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
  assert_non_null(cipher);
  assert_int_equal(EVP_CipherInit_ex(context, cipher, NULL, it->key, it->iv, encrypt), 1);
  EVP_CIPHER_free(cipher);
  return context;
}

/* Encrypt or decrypt in parts of `part` bytes; 0 when the tag is wrong. */
static int pass(EVP_CIPHER_CTX *context, text *it, const unsigned char *in, unsigned char *out, int part) {
  int n, done = 0;
  if (it->additional_n)
    assert_int_equal(EVP_CipherUpdate(context, NULL, &n, it->additional, it->additional_n), 1);
  while (done < it->n) {
    int size = it->n - done < part ? it->n - done : part;
    assert_int_equal(EVP_CipherUpdate(context, out + done, &n, in + done, size), 1);
    assert_int_equal(n, size);
    done += n;
  }
  return EVP_CipherFinal_ex(context, out + done, &n);
}

static void encrypt(OSSL_LIB_CTX *library, const char *name, text *it, int part) {
  EVP_CIPHER_CTX *context = context_of(library, name, it, 1);
  assert_int_equal(pass(context, it, it->plain, it->out, part), 1);
  assert_int_equal(EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, TAG_BYTES, it->tag), 1);
  EVP_CIPHER_CTX_free(context);
}

/* In place, as libssl does it. */
static int decrypt(OSSL_LIB_CTX *library, const char *name, text *it, int part) {
  EVP_CIPHER_CTX *context = context_of(library, name, it, 0);
  assert_int_equal(EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, TAG_BYTES, it->tag), 1);
  int good = pass(context, it, it->out, it->out, part);
  EVP_CIPHER_CTX_free(context);
  return good;
}

static int set_up(void **state) {
  ours = na_tls_library();
  return 0;
}

/* Without what it needs the engine's TLS has OpenSSL's ciphers, and there is nothing to compare. */
static void need_provider(void) {
  if (!ours || !na_aes_gcm())
    skip();
}

static void test_engine_alone_has_it(void **state) {
  need_provider();
  for (size_t i = 0; i < 2; i++) {
    EVP_CIPHER *cipher = EVP_CIPHER_fetch(ours, names[i], NULL);
    assert_string_equal(OSSL_PROVIDER_get0_name(EVP_CIPHER_get0_provider(cipher)), "nodeagent");
    EVP_CIPHER_free(cipher);
    EVP_CIPHER *others = EVP_CIPHER_fetch(NULL, names[i], NULL);
    assert_string_equal(OSSL_PROVIDER_get0_name(EVP_CIPHER_get0_provider(others)), "default");
    EVP_CIPHER_free(others);
  }
}

static void test_known_answer(void **state) {
  /* The GCM specification's test case 4 (McGrew and Viega), and with a 256 bit key its test case 16. */
  static const unsigned char key[] = "\xfe\xff\xe9\x92\x86\x65\x73\x1c\x6d\x6a\x8f\x94\x67\x30\x83\x08"
                                     "\xfe\xff\xe9\x92\x86\x65\x73\x1c\x6d\x6a\x8f\x94\x67\x30\x83\x08";
  static const unsigned char iv[] = "\xca\xfe\xba\xbe\xfa\xce\xdb\xad\xde\xca\xf8\x88";
  static const unsigned char plain[] = "\xd9\x31\x32\x25\xf8\x84\x06\xe5\xa5\x59\x09\xc5\xaf\xf5\x26\x9a"
                                       "\x86\xa7\xa9\x53\x15\x34\xf7\xda\x2e\x4c\x30\x3d\x8a\x31\x8a\x72"
                                       "\x1c\x3c\x0c\x95\x95\x68\x09\x53\x2f\xcf\x0e\x24\x49\xa6\xb5\x25"
                                       "\xb1\x6a\xed\xf5\xaa\x0d\xe6\x57\xba\x63\x7b\x39";
  static const unsigned char additional[] = "\xfe\xed\xfa\xce\xde\xad\xbe\xef\xfe\xed\xfa\xce\xde\xad\xbe\xef"
                                            "\xab\xad\xda\xd2";
  static const unsigned char tags[][TAG_BYTES + 1] = {
      "\x5b\xc9\x4f\xbc\x32\x21\xa5\xdb\x94\xfa\xe9\x5a\xe7\x12\x1a\x47",
      "\x76\xfc\x6e\xce\x0f\x4e\x17\x68\xcd\xdf\x88\x53\xbb\x2d\x55\x1b",
  };
  need_provider();
  for (size_t i = 0; i < 2; i++) {
    text *it = new_text(60);
    it->additional_n = 20;
    memcpy(it->key, key, 32);
    memcpy(it->iv, iv, IV_BYTES);
    memcpy(it->plain, plain, 60);
    memcpy(it->additional, additional, 20);
    encrypt(ours, names[i], it, 60);
    assert_memory_equal(it->tag, tags[i], TAG_BYTES);
    test_free(it);
  }
}

static void test_agrees_with_openssl(void **state) {
  static const int sizes[] = {0, 1, 15, 16, 17, 63, 64, 255, 256, 257, 1000, 4096, 16383, MAX_TEXT};
  static const int parts[] = {1, 16, 100, 4096, MAX_TEXT};
  need_provider();
  for (size_t i = 0; i < 2 * COUNT(sizes); i++) {
    text *it = new_text(sizes[i / 2]), *other = test_calloc(1, sizeof *other);
    int part = parts[i % COUNT(parts)];
    *other = *it;
    encrypt(ours, names[i % 2], it, part);
    encrypt(NULL, names[i % 2], other, MAX_TEXT);
    assert_memory_equal(it->out, other->out, it->n);
    assert_memory_equal(it->tag, other->tag, TAG_BYTES);
    assert_int_equal(decrypt(ours, names[i % 2], other, part), 1);
    assert_memory_equal(other->out, other->plain, other->n);
    test_free(it);
    test_free(other);
  }
}

static void test_whatever_is_changed_is_refused(void **state) {
  need_provider();
  for (int n = 0; n <= 100; n += 20) {
    text *it = new_text(n);
    unsigned char *const places[] = {it->out, it->additional, it->tag, it->tag + TAG_BYTES - 1, it->iv, it->key};
    for (size_t i = 0; i < COUNT(places); i++) {
      encrypt(ours, names[1], it, n);
      *places[i] ^= 1;
      int counts = (places[i] != it->out || n) && (places[i] != it->additional || it->additional_n);
      assert_int_equal(decrypt(ours, names[1], it, n), !counts);
      *places[i] ^= 1;
    }
    test_free(it);
  }
}

static void test_no_nonce_twice(void **state) {
  need_provider();
  text *it = new_text(40);
  int n;
  EVP_CIPHER_CTX *context = context_of(ours, names[0], it, 1);
  assert_int_equal(pass(context, it, it->plain, it->out, 40), 1);
  assert_int_equal(EVP_CipherUpdate(context, it->out, &n, it->plain, it->n), 0);
  assert_int_equal(EVP_CipherInit_ex(context, NULL, NULL, NULL, it->iv, 1), 1); /* a nonce is the caller's word */
  assert_int_equal(pass(context, it, it->plain, it->out, 40), 1);
  EVP_CIPHER_CTX_free(context);
  test_free(it);
}

static void test_misuse_is_refused(void **state) {
  need_provider();
  text *it = new_text(40);
  int n;
  unsigned char tag[TAG_BYTES];
  EVP_CIPHER_CTX *context = context_of(ours, names[0], it, 1);
  assert_int_equal(EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, TAG_BYTES, tag), 0); /* none yet */
  assert_int_equal(EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_IVLEN, 16, NULL), 0);
  assert_int_equal(EVP_CipherUpdate(context, NULL, &n, it->additional, 5), 1);
  assert_int_equal(EVP_CipherUpdate(context, NULL, &n, it->additional, 5), 0); /* additional data in two parts */
  EVP_CIPHER_CTX_free(context);
  context = context_of(ours, names[0], it, 0); /* without a tag nothing is authentic */
  assert_int_equal(pass(context, it, it->plain, it->out, 40), 0);
  EVP_CIPHER_CTX_free(context);
  test_free(it);
}

static void test_contexts_can_be_copied(void **state) {
  need_provider();
  text *it = new_text(100);
  int n;
  unsigned char tag[2][TAG_BYTES];
  EVP_CIPHER_CTX *contexts[] = {context_of(ours, names[1], it, 1), EVP_CIPHER_CTX_new()};
  assert_int_equal(EVP_CipherUpdate(contexts[0], it->out, &n, it->plain, 50), 1);
  assert_int_equal(EVP_CIPHER_CTX_copy(contexts[1], contexts[0]), 1);
  for (size_t i = 0; i < 2; i++) {
    assert_int_equal(EVP_CipherUpdate(contexts[i], it->out + 50, &n, it->plain + 50, 50), 1);
    assert_int_equal(EVP_CipherFinal_ex(contexts[i], it->out + 100, &n), 1);
    assert_int_equal(EVP_CIPHER_CTX_ctrl(contexts[i], EVP_CTRL_AEAD_GET_TAG, TAG_BYTES, tag[i]), 1);
    EVP_CIPHER_CTX_free(contexts[i]);
  }
  assert_memory_equal(tag[0], tag[1], TAG_BYTES);
  test_free(it);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_engine_alone_has_it),    cmocka_unit_test(test_known_answer),
      cmocka_unit_test(test_agrees_with_openssl),    cmocka_unit_test(test_whatever_is_changed_is_refused),
      cmocka_unit_test(test_no_nonce_twice),         cmocka_unit_test(test_misuse_is_refused),
      cmocka_unit_test(test_contexts_can_be_copied),
  };
  return cmocka_run_group_tests(tests, set_up, NULL);
}
