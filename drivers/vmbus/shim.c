// SPDX-License-Identifier: GPL-2.0
/*
 * What Rust cannot call: inline functions, macros, per-CPU data and functions with a variable number of arguments.
 * Nothing is decided here.
 */
#include <linux/acpi.h>
#include <linux/atomic.h>
#include <linux/cpu.h>
#include <linux/cpumask.h>
#include <linux/device.h>
#include <linux/dma-map-ops.h>
#include <linux/dma-mapping.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/irqflags.h>
#include <linux/ioport.h>
#include <linux/kobject.h>
#include <linux/mm.h>
#include <linux/panic_notifier.h>
#include <linux/platform_device.h>
#include <linux/sched/isolation.h>
#include <linux/spinlock.h>
#include <linux/syscore_ops.h>
#include <linux/sysfs.h>
#include <linux/topology.h>
#include <linux/vmalloc.h>
#include <asm/hypervisor.h>
#include <asm/irq_vectors.h>
#include <asm/mshyperv.h>

/* Kept the same by hand in ffi.rs. */
struct hv_rs_features {
	bool hyperv;
	bool root_partition;
	bool nested;
	bool isolated;
	bool auto_eoi;
	u8 callback_vector;
	u8 vtl;
};

bool hv_vmbus_exists(void);

/*
 * Whether the C driver is there, built in or loaded. Looked up by name: a reference, even a weak one, would make the
 * C driver something that this module depends on, and that modprobe loads before it. May sleep.
 */
bool hv_rs_c_bus_exists(void)
{
	bool (*exists)(void) = symbol_get(hv_vmbus_exists);
	bool found;

	if (!exists)
		return false;
	found = exists();
	symbol_put(hv_vmbus_exists);
	return found;
}

/*
 * Tells lockdep that with PREEMPT_RT this interrupt would be a thread, as the C driver does: completions of the block layer
 * take locks that sleep there. This module refuses such kernels.
 */
void hv_rs_hardirq_threaded(void)
{
	lockdep_hardirq_threaded();
}

/* Locks */

void hv_rs_lock_init(raw_spinlock_t *lock, const char *name, struct lock_class_key *key)
{
#ifdef CONFIG_DEBUG_SPINLOCK
	__raw_spin_lock_init(lock, name, key, LD_WAIT_SPIN);
#else
	*lock = __RAW_SPIN_LOCK_UNLOCKED(name);
#endif
}

unsigned long hv_rs_lock(raw_spinlock_t *lock)
{
	unsigned long flags;

	raw_spin_lock_irqsave(lock, flags);
	return flags;
}

void hv_rs_unlock(raw_spinlock_t *lock, unsigned long flags)
{
	raw_spin_unlock_irqrestore(lock, flags);
}

/* Hypervisor */

void hv_rs_features(struct hv_rs_features *f)
{
	f->hyperv = hypervisor_is_type(X86_HYPER_MS_HYPERV) && hv_is_hyperv_initialized();
	f->root_partition = hv_root_partition();
	f->nested = hv_nested;
	f->isolated = hv_is_isolation_supported() || ms_hyperv.paravisor_present;
	f->auto_eoi = hv_recommend_using_aeoi();
	f->callback_vector = HYPERVISOR_CALLBACK_VECTOR;
	f->vtl = ms_hyperv.vtl;
}

bool hv_rs_hibernation_supported(void)
{
	return hv_is_hibernation_supported();
}

u32 hv_rs_vp_index(unsigned int cpu)
{
	return hv_cpu_number_to_vp_number(cpu);
}

/*
 * A hypercall with @len bytes of input and no output. The input page belongs to the CPU, so interrupts are off while it
 * is in use. Returns the status.
 */
u16 hv_rs_hypercall(u16 code, const void *input, size_t len)
{
	unsigned long flags;
	void *page;
	u64 status;

	local_irq_save(flags);
	page = *this_cpu_ptr(hyperv_pcpu_input_arg);
	memcpy(page, input, min_t(size_t, len, HV_HYP_PAGE_SIZE));
	status = hv_do_hypercall(code | (hv_nested ? HV_HYPERCALL_NESTED : 0), page, NULL);
	local_irq_restore(flags);
	return hv_result(status);
}

/* A hypercall whose 8 bytes of input go in a register. */
u16 hv_rs_fast_hypercall(u16 code, u64 input)
{
	u64 control = code | HV_HYPERCALL_FAST_BIT | (hv_nested ? HV_HYPERCALL_NESTED : 0);

	return hv_result(_hv_do_fast_hypercall8(control, input));
}

/* Tasklets */

void hv_rs_tasklet_schedule(struct tasklet_struct *t)
{
	tasklet_schedule(t);
}

/* CPUs */

unsigned int hv_rs_nr_cpu_ids(void)
{
	return nr_cpu_ids;
}

/* Whether channels may interrupt @cpu: not when it was isolated from managed interrupts. */
bool hv_rs_cpu_usable(unsigned int cpu)
{
	return cpu < nr_cpu_ids && cpu_online(cpu) && cpumask_test_cpu(cpu, housekeeping_cpumask(HK_TYPE_MANAGED_IRQ));
}

int hv_rs_cpu_to_node(unsigned int cpu)
{
	return cpu_to_node(cpu);
}

/* Memory */

/* @order pages near @node, zeroed; NULL when there are none. */
struct page *hv_rs_alloc_pages(int node, unsigned int order, bool quiet)
{
	gfp_t gfp = GFP_KERNEL | __GFP_ZERO | (quiet ? __GFP_NOWARN | __GFP_NORETRY : 0);

	return alloc_pages_node(node, gfp, order);
}

void hv_rs_free_pages(struct page *page, unsigned int order)
{
	__free_pages(page, order);
}

u64 hv_rs_page_pfn(struct page *page)
{
	return page_to_pfn(page);
}

void *hv_rs_page_address(struct page *page)
{
	return page_address(page);
}

void *hv_rs_vmap(struct page **pages, unsigned int count)
{
	return vmap(pages, count, VM_MAP, PAGE_KERNEL);
}

void hv_rs_vunmap(void *address)
{
	vunmap(address);
}

/* Device model */

void hv_rs_dma_setup(struct device *dev, struct device_dma_parameters *parms, u64 *mask)
{
	dev->dma_parms = parms;
	dev->dma_mask = mask;
	dma_set_mask(dev, DMA_BIT_MASK(64));
	dma_set_coherent_mask(dev, DMA_BIT_MASK(64));
}

int hv_rs_dev_set_name(struct device *dev, const u8 *guid)
{
	return dev_set_name(dev, "%pUl", guid);
}

int hv_rs_uevent_modalias(struct kobj_uevent_env *env, const u8 *guid)
{
	return add_uevent_var(env, "MODALIAS=vmbus:%*phN", 16, guid);
}

int hv_rs_match_driver_override(struct device *dev, const struct device_driver *drv)
{
	return device_match_driver_override(dev, drv);
}

/* Panic */

int hv_rs_panic_register(struct notifier_block *nb)
{
	return atomic_notifier_chain_register(&panic_notifier_list, nb);
}

void hv_rs_panic_unregister(struct notifier_block *nb)
{
	atomic_notifier_chain_unregister(&panic_notifier_list, nb);
}

/* Hibernation: the boot CPU, which does not go through CPU hotplug. With interrupts off. power.rs */

int hv_rs_synic_suspend(void);
void hv_rs_synic_resume(void);

static int hv_rs_syscore_suspend(void *data)
{
	return hv_rs_synic_suspend();
}

static void hv_rs_syscore_resume(void *data)
{
	hv_rs_synic_resume();
}

static const struct syscore_ops hv_rs_syscore_ops = {
	.suspend = hv_rs_syscore_suspend,
	.resume = hv_rs_syscore_resume,
};

static struct syscore hv_rs_syscore = { .ops = &hv_rs_syscore_ops };

void hv_rs_syscore_register(void)
{
	register_syscore(&hv_rs_syscore);
}

void hv_rs_syscore_unregister(void)
{
	unregister_syscore(&hv_rs_syscore);
}

/* ACPI */

struct device *hv_rs_acpi_companion_dev(struct platform_device *pdev)
{
	struct acpi_device *adev = ACPI_COMPANION(&pdev->dev);

	return adev ? &adev->dev : NULL;
}

struct hv_rs_walk {
	void (*range)(void *ctx, u64 start, u64 end);
	void *ctx;
};

static acpi_status hv_rs_walk_one(struct acpi_resource *res, void *data)
{
	struct hv_rs_walk *w = data;

	if (res->type == ACPI_RESOURCE_TYPE_ADDRESS32)
		w->range(w->ctx, res->data.address32.address.minimum, res->data.address32.address.maximum);
	else if (res->type == ACPI_RESOURCE_TYPE_ADDRESS64)
		w->range(w->ctx, res->data.address64.address.minimum, res->data.address64.address.maximum);
	return AE_OK;
}

/*
 * Calls @range for each address window in the _CRS of the device and, until one has some, of its ancestors.
 * @found tells whether the last node visited had any.
 */
int hv_rs_walk_windows(struct platform_device *pdev, void (*range)(void *ctx, u64 start, u64 end), void *ctx,
		       bool (*found)(void *ctx))
{
	struct hv_rs_walk w = { .range = range, .ctx = ctx };
	struct acpi_device *adev = ACPI_COMPANION(&pdev->dev);

	if (!adev)
		return -ENODEV;
	/* Not every firmware gives the device itself a _CRS. */
	acpi_walk_resources(adev->handle, METHOD_NAME__CRS, hv_rs_walk_one, &w);
	for (adev = acpi_dev_parent(adev); adev && adev->handle != ACPI_ROOT_OBJECT && !found(ctx);
	     adev = acpi_dev_parent(adev))
		acpi_walk_resources(adev->handle, METHOD_NAME__CRS, hv_rs_walk_one, &w);
	return 0;
}
