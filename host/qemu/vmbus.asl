// SPDX-License-Identifier: GPL-2.0-only OR MIT
//
// The VMBus device as a Hyper-V guest finds it: a module device (ACPI0004) that owns the MMIO windows, and
// below it the bus. Linux looks for the windows on the bus device and then on its ancestors (drivers/hv/vmbus_drv.c,
// vmbus_acpi_add). The name "VMBus" has five characters, which ACPI does not allow and Hyper-V uses
// all the same: iasl needs -f.
//
// The windows lie where Hyper-V puts them: below 4 GiB the last 128 MiB before the I/O APIC, above it 4 GiB at
// 0xfe0000000.
DefinitionBlock ("vmbus.aml", "SSDT", 2, "HVRS", "VMBUS", 0x00000001)
{
    Scope (\_SB)
    {
        Device (VMOD)
        {
            Name (_HID, "ACPI0004")
            Name (_UID, Zero)
            Name (_CRS, ResourceTemplate ()
            {
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                    0x00000000, 0xF8000000, 0xFEBFFFFF, 0x00000000, 0x06C00000)
                QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                    0x0000000000000000, 0x0000000FE0000000, 0x00000010DFFFFFFF, 0x0000000000000000,
                    0x0000000100000000)
            })

            Device (VMBS)
            {
                Name (_HID, "VMBus")
                Name (_UID, Zero)
                Method (_STA, 0, NotSerialized)
                {
                    Return (0x0F)
                }
            }
        }
    }
}
