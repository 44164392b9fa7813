# SPDX-License-Identifier: GPL-2.0
# Builds the kernel modules by hand:
#
#	make KDIR=/path/to/kernel/build [MO=/path/for/output]
#
# KDIR is a configured kernel build directory with its Rust metadata (rust/*.rmeta). Distribution header packages
# leave those out; docs/drivers.md tells how to make them again for a Debian kernel. CC, LOCALVERSION and the like are
# passed on to the kernel's build as usual.

KDIR ?= /lib/modules/$(shell uname -r)/build
# Where the objects and modules go; the default keeps them out of the sources.
MO ?= $(CURDIR)/target/kbuild/$(notdir $(abspath $(KDIR)))

modules: | $(MO)
	$(MAKE) -C $(KDIR) M=$(CURDIR) MO=$(MO) modules

modules_install: | $(MO)
	$(MAKE) -C $(KDIR) M=$(CURDIR) MO=$(MO) modules_install

clean:
	rm -rf $(CURDIR)/target/kbuild

$(MO):
	mkdir -p $@

# The crates in third_party/ must be those of Cargo.lock.
check-third-party:
	@for c in bitflags static_assertions; do \
		v=$$(sed -n "s/^| .$$c. | \([0-9.]*\) .*/\1/p" third_party/README.md); \
		grep -A1 "^name = \"$$c\"" Cargo.lock | grep -q "version = \"$$v\"" || \
			{ echo "third_party/$$c is $$v, Cargo.lock differs"; exit 1; }; \
	done

.PHONY: modules modules_install clean check-third-party
