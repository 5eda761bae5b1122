/* SPDX-License-Identifier: Apache-2.0 */
#include "aes_gcm.h"

#include <stddef.h>

#ifndef NODEAGENT_IPSEC_MB

const OSSL_ALGORITHM *na_aes_gcm(void) {
  return NULL;
}

#else

#include <intel-ipsec-mb.h>
#include <openssl/core_dispatch.h>
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <stdalign.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define IV_BYTES    12
#define TAG_BYTES   16
#define ALIGNMENT   64 /* of the library's keys */
#define NEEDED      (IMB_FEATURE_AVX512_SKX | IMB_FEATURE_VAES | IMB_FEATURE_VPCLMULQDQ)
/* Output may not be shorter than what EVP asks for; GCM has no padding. */
#define BLOCK_BYTES 1

/* A key size, and the library's functions for it on this processor. */
typedef struct aes {
  size_t key_bytes;
  aes_gcm_pre_t prepare;
  aes_gcm_init_t begin;
  aes_gcm_enc_dec_update_t encrypt, decrypt;
  aes_gcm_enc_dec_finalize_t end_encryption, end_decryption;
} aes;

static aes aes128 = {.key_bytes = 16}, aes256 = {.key_bytes = 32};

/* What an EVP_CIPHER_CTX holds. */
typedef struct gcm {
  alignas(ALIGNMENT) struct gcm_key_data key;
  struct gcm_context_data state;
  const aes *cipher;
  uint8_t iv[IV_BYTES];
  uint8_t tag[TAG_BYTES]; /* encryption: of the last text; decryption: that it must have */
  size_t tag_bytes;       /* 0: none yet */
  bool encrypting, has_key;
  bool has_iv;  /* taken away at the end: no nonce is used twice */
  bool started; /* additional data, or none, is in */
} gcm;

/* ---- contexts ---- */

static void *new_context(const aes *cipher) {
  gcm *g = aligned_alloc(ALIGNMENT, sizeof *g);
  if (g) {
    memset(g, 0, sizeof *g);
    g->cipher = cipher;
  }
  return g;
}

static void *new_context128(void *provider) {
  return new_context(&aes128);
}

static void *new_context256(void *provider) {
  return new_context(&aes256);
}

static void free_context(void *context) {
  if (context)
    OPENSSL_cleanse(context, sizeof(gcm));
  free(context);
}

static void *copy_context(void *context) {
  gcm *copy = aligned_alloc(ALIGNMENT, sizeof *copy);
  if (copy)
    *copy = *(gcm *)context;
  return copy;
}

/* ---- parameters ---- */

static int set_params(void *context, const OSSL_PARAM params[]) {
  gcm *g = context;
  for (const OSSL_PARAM *p = params; p && p->key; p++) {
    size_t n;
    if (strcmp(p->key, OSSL_CIPHER_PARAM_AEAD_TAG) == 0) {
      if (g->encrypting || p->data_type != OSSL_PARAM_OCTET_STRING || !p->data_size || p->data_size > TAG_BYTES)
        return 0;
      if (p->data)
        memcpy(g->tag, p->data, p->data_size);
      g->tag_bytes = p->data ? p->data_size : 0;
    } else if (strcmp(p->key, OSSL_CIPHER_PARAM_AEAD_IVLEN) == 0) {
      if (!OSSL_PARAM_get_size_t(p, &n) || n != IV_BYTES)
        return 0;
    } else if (strcmp(p->key, OSSL_CIPHER_PARAM_KEYLEN) == 0) {
      if (!OSSL_PARAM_get_size_t(p, &n) || n != g->cipher->key_bytes)
        return 0;
    }
  }
  return 1;
}

static int get_tag(const gcm *g, OSSL_PARAM *p) {
  if (!g->encrypting || p->data_size > g->tag_bytes)
    return 0;
  return OSSL_PARAM_set_octet_string(p, g->tag, p->data_size);
}

static int get_params(void *context, OSSL_PARAM params[]) {
  const gcm *g = context;
  for (OSSL_PARAM *p = params; p && p->key; p++) {
    int good = 1;
    if (strcmp(p->key, OSSL_CIPHER_PARAM_AEAD_TAG) == 0)
      good = get_tag(g, p);
    else if (strcmp(p->key, OSSL_CIPHER_PARAM_IVLEN) == 0)
      good = OSSL_PARAM_set_size_t(p, IV_BYTES);
    else if (strcmp(p->key, OSSL_CIPHER_PARAM_KEYLEN) == 0)
      good = OSSL_PARAM_set_size_t(p, g->cipher->key_bytes);
    else if (strcmp(p->key, OSSL_CIPHER_PARAM_AEAD_TAGLEN) == 0)
      good = OSSL_PARAM_set_size_t(p, TAG_BYTES);
    if (!good)
      return 0;
  }
  return 1;
}

static int get_cipher_params(OSSL_PARAM params[], const aes *cipher) {
  const struct {
    const char *name;
    size_t value;
  } numbers[] = {
      {OSSL_CIPHER_PARAM_MODE, EVP_CIPH_GCM_MODE},
      {OSSL_CIPHER_PARAM_KEYLEN, cipher->key_bytes},
      {OSSL_CIPHER_PARAM_IVLEN, IV_BYTES},
      {OSSL_CIPHER_PARAM_BLOCK_SIZE, BLOCK_BYTES},
      {OSSL_CIPHER_PARAM_AEAD, 1},
      {OSSL_CIPHER_PARAM_CUSTOM_IV, 1},
  };
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
    OSSL_PARAM *p = OSSL_PARAM_locate(params, numbers[i].name);
    if (!p)
      continue;
    bool good = p->data_type == OSSL_PARAM_INTEGER ? OSSL_PARAM_set_int(p, (int)numbers[i].value)
                                                   : OSSL_PARAM_set_size_t(p, numbers[i].value);
    if (!good)
      return 0;
  }
  return 1;
}

static int get_params128(OSSL_PARAM params[]) {
  return get_cipher_params(params, &aes128);
}

static int get_params256(OSSL_PARAM params[]) {
  return get_cipher_params(params, &aes256);
}

static const OSSL_PARAM *settable(void *context, void *provider) {
  static const OSSL_PARAM known[] = {
      OSSL_PARAM_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, NULL, 0),
      OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_AEAD_IVLEN, NULL),
      OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_KEYLEN, NULL),
      OSSL_PARAM_END,
  };
  return known;
}

static const OSSL_PARAM *gettable(void *context, void *provider) {
  static const OSSL_PARAM known[] = {
      OSSL_PARAM_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, NULL, 0),
      OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_AEAD_TAGLEN, NULL),
      OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_IVLEN, NULL),
      OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_KEYLEN, NULL),
      OSSL_PARAM_END,
  };
  return known;
}

/* ---- texts ---- */

static int begin(gcm *g, const unsigned char *key, size_t key_n, const unsigned char *iv, size_t iv_n,
                 const OSSL_PARAM params[]) {
  if ((key && key_n != g->cipher->key_bytes) || (iv && iv_n != IV_BYTES))
    return 0;
  if (key) {
    g->cipher->prepare(key, &g->key);
    g->has_key = true;
  }
  if (iv)
    memcpy(g->iv, iv, IV_BYTES);
  g->has_iv = iv != NULL;
  g->started = false;
  g->tag_bytes = 0;
  return set_params(g, params);
}

static int begin_encryption(void *context, const unsigned char *key, size_t key_n, const unsigned char *iv, size_t iv_n,
                            const OSSL_PARAM params[]) {
  gcm *g = context;
  g->encrypting = true;
  return begin(g, key, key_n, iv, iv_n, params);
}

static int begin_decryption(void *context, const unsigned char *key, size_t key_n, const unsigned char *iv, size_t iv_n,
                            const OSSL_PARAM params[]) {
  gcm *g = context;
  g->encrypting = false;
  return begin(g, key, key_n, iv, iv_n, params);
}

static bool start(gcm *g, const unsigned char *additional, size_t n) {
  if (g->started || !g->has_key || !g->has_iv)
    return false;
  g->cipher->begin(&g->key, &g->state, g->iv, additional, n);
  g->started = true;
  return true;
}

/* Without `out`, `in` is additional data. */
static int update(void *context, unsigned char *out, size_t *out_n, size_t out_size, const unsigned char *in,
                  size_t n) {
  gcm *g = context;
  *out_n = n;
  if (!out)
    return start(g, in, n);
  if ((!g->started && !start(g, NULL, 0)) || out_size < n)
    return 0;
  (g->encrypting ? g->cipher->encrypt : g->cipher->decrypt)(&g->key, &g->state, out, in, n);
  return 1;
}

/* The end of a text: make its tag, or see that it has the right one. */
static int finish(void *context, unsigned char *out, size_t *out_n, size_t out_size) {
  gcm *g = context;
  *out_n = 0;
  if (!g->started && !start(g, NULL, 0))
    return 0;
  g->started = g->has_iv = false;
  if (g->encrypting) {
    g->cipher->end_encryption(&g->key, &g->state, g->tag, TAG_BYTES);
    g->tag_bytes = TAG_BYTES;
    return 1;
  }
  uint8_t tag[TAG_BYTES];
  g->cipher->end_decryption(&g->key, &g->state, tag, TAG_BYTES);
  return g->tag_bytes && CRYPTO_memcmp(tag, g->tag, g->tag_bytes) == 0;
}

/* ---- the whole ---- */

typedef void (*function)(void);

#define FUNCTIONS(bits)                                                                                                \
  {                                                                                                                    \
    {OSSL_FUNC_CIPHER_NEWCTX, (function)new_context##bits}, {OSSL_FUNC_CIPHER_FREECTX, (function)free_context},        \
        {OSSL_FUNC_CIPHER_DUPCTX, (function)copy_context},                                                             \
        {OSSL_FUNC_CIPHER_ENCRYPT_INIT, (function)begin_encryption},                                                   \
        {OSSL_FUNC_CIPHER_DECRYPT_INIT, (function)begin_decryption}, {OSSL_FUNC_CIPHER_UPDATE, (function)update},      \
        {OSSL_FUNC_CIPHER_FINAL, (function)finish}, {OSSL_FUNC_CIPHER_GET_PARAMS, (function)get_params##bits},         \
        {OSSL_FUNC_CIPHER_GET_CTX_PARAMS, (function)get_params},                                                       \
        {OSSL_FUNC_CIPHER_SET_CTX_PARAMS, (function)set_params},                                                       \
        {OSSL_FUNC_CIPHER_GETTABLE_CTX_PARAMS, (function)gettable},                                                    \
        {OSSL_FUNC_CIPHER_SETTABLE_CTX_PARAMS, (function)settable}, {0, NULL},                                         \
  }

static const OSSL_DISPATCH functions128[] = FUNCTIONS(128), functions256[] = FUNCTIONS(256);

static const OSSL_ALGORITHM algorithms[] = {
    {"AES-128-GCM:id-aes128-GCM:2.16.840.1.101.3.4.1.6", "provider=nodeagent", functions128, NULL},
    {"AES-256-GCM:id-aes256-GCM:2.16.840.1.101.3.4.1.46", "provider=nodeagent", functions256, NULL},
    {NULL, NULL, NULL, NULL},
};

/* The functions do not need the manager that knows them: it is of 200 KB and goes again. */
static bool find_functions(void) {
  IMB_MGR *manager = alloc_mb_mgr(0);
  if (!manager)
    return false;
  init_mb_mgr_auto(manager, NULL);
  bool able = (manager->features & NEEDED) == NEEDED && manager->gcm128_pre && manager->gcm256_pre;
  if (able) {
    aes128 = (aes){16,
                   manager->gcm128_pre,
                   manager->gcm128_init,
                   manager->gcm128_enc_update,
                   manager->gcm128_dec_update,
                   manager->gcm128_enc_finalize,
                   manager->gcm128_dec_finalize};
    aes256 = (aes){32,
                   manager->gcm256_pre,
                   manager->gcm256_init,
                   manager->gcm256_enc_update,
                   manager->gcm256_dec_update,
                   manager->gcm256_enc_finalize,
                   manager->gcm256_dec_finalize};
  }
  free_mb_mgr(manager);
  return able;
}

const OSSL_ALGORITHM *na_aes_gcm(void) {
  bool wanted = OpenSSL_version_num() < 0x30100000L;
  return wanted && find_functions() ? algorithms : NULL;
}

#endif
