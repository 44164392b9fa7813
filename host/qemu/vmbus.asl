// SPDX-License-Identifier: GPL-2.0-only OR MIT
//
// The ACPI table that tells a guest of the VMBus device, for QEMU's `-acpitable file=`.
// Compile with `iasl -f`: force, since iasl refuses a _HID of five characters, which is the one of Hyper-V's firmware.
//
// As in Hyper-V's own DSDT, a module device (ACPI0004) holds in _CRS the address space for VMBus devices, and below it lies the
// device by which guests find out that there is a VMBus (Linux: vmbus_acpi_device_ids, vmbus_walk_resources).
DefinitionBlock ("", "SSDT", 2, "HYPRV", "VMBUS", 1)
{
    Scope (\_SB)
    {
        Device (VMOD)
        {
            Name (_HID, "ACPI0004")
            Name (_UID, 0)
            Name (_STA, 0x0F)
            Name (_CRS, ResourceTemplate ()
            {
                // Below 4 GiB: the upper part of QEMU's 32-bit PCI hole, under what the firmware hands out first.
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                    0, 0xF8000000, 0xFBFFFFFF, 0, 0x04000000)
                // Above: behind all RAM and PCI windows, within 40 physical address bits.
                QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                    0, 0xFE00000000, 0xFEFFFFFFFF, 0, 0x100000000)
            })
            // Without a _CRS, be it empty as in OpenVMM's DSDT (vm/acpi, add_vmbus), the in-tree driver does not bind to
            // the device (vmbus_acpi_add): it connects all the same, but knows no MMIO windows and keeps the connection
            // over hibernation.
            Device (VMBS)
            {
                Name (_HID, "VMBus")
                Name (_UID, 0)
                Name (_STA, 0x0F)
                Name (_CRS, ResourceTemplate () {})
            }
        }
    }
}
