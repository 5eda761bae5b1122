/* SPDX-License-Identifier: Apache-2.0
 *
 * cmocka with the headers that it wants to be included before it.
 */
#ifndef NODEAGENT_CMOCKA_COMMON_H
#define NODEAGENT_CMOCKA_COMMON_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define COUNT(table) (sizeof(table) / sizeof *(table))

#endif
