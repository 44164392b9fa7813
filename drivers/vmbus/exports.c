// SPDX-License-Identifier: GPL-2.0
/*
 * Exports the Rust items that other modules of the suite use. The list is made by the build from what those modules
 * lack (see Kbuild); the type given here is of no account, since only the address goes into the table.
 */
#include <linux/export.h>

#define EXPORT_SYMBOL_RUST_GPL(sym) extern int sym; EXPORT_SYMBOL_GPL(sym)

#include "exports_generated.h"
