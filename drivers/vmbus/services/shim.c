// SPDX-License-Identifier: GPL-2.0
/*
 * What the layers in services/ cannot reach from Rust: function pointers, and functions and structures of headers that
 * kernel::bindings does not cover.
 */
#include <linux/cpumask.h>
#include <linux/device.h>
#include <linux/err.h>
#include <linux/kobject.h>
#include <linux/lockdep.h>
#include <linux/module.h>
#include <linux/ptp_clock_kernel.h>
#include <linux/reboot.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/workqueue.h>
#include <clocksource/hyperv_timer.h>
#include <asm/mshyperv.h>

u64 hv_rs_reference_time(void)
{
	return hv_read_reference_counter ? hv_read_reference_counter() : 0;
}

u32 hv_rs_online_cpus(void)
{
	return num_online_cpus();
}

u32 hv_rs_present_cpus(void)
{
	return num_present_cpus();
}

void hv_rs_orderly_poweroff(void)
{
	orderly_poweroff(true);
}

void hv_rs_orderly_reboot(void)
{
	orderly_reboot();
}

bool hv_rs_can_hibernate(void)
{
	return hv_is_hibernation_supported();
}

void hv_rs_delayed_work_init(struct delayed_work *work, work_func_t function, const char *name, struct lock_class_key *key)
{
	INIT_DELAYED_WORK(work, function);
	/* With the class of the caller. */
	lockdep_init_map(&work->work.lockdep_map, name, key, 0);
}

/* Sends a "change" uevent with one more variable. */
int hv_rs_uevent(struct device *dev, const char *var)
{
	char *env[] = { (char *)var, NULL };

	return kobject_uevent_env(&dev->kobj, KOBJ_CHANGE, env);
}

struct hv_rs_ptp {
	struct ptp_clock_info info;
	struct ptp_clock *clock;
	int (*read)(const void *data, u64 *ns);
	const void *data;
};

static int hv_rs_ptp_gettimex(struct ptp_clock_info *info, struct timespec64 *ts, struct ptp_system_timestamp *sts)
{
	struct hv_rs_ptp *p = container_of(info, struct hv_rs_ptp, info);
	u64 ns;
	int ret;

	ptp_read_system_prets(sts);
	ret = p->read(p->data, &ns);
	ptp_read_system_postts(sts);
	if (!ret)
		*ts = ns_to_timespec64(ns);
	return ret;
}

/* The clock belongs to the host: it can be read and nothing else. The PTP core calls these without a check. */
static int hv_rs_ptp_settime(struct ptp_clock_info *info, const struct timespec64 *ts)
{
	return -EOPNOTSUPP;
}

static int hv_rs_ptp_adjtime(struct ptp_clock_info *info, s64 delta)
{
	return -EOPNOTSUPP;
}

static int hv_rs_ptp_adjfine(struct ptp_clock_info *info, long delta)
{
	return -EOPNOTSUPP;
}

static int hv_rs_ptp_enable(struct ptp_clock_info *info, struct ptp_clock_request *request, int on)
{
	return -EOPNOTSUPP;
}

/* May sleep. An ERR_PTR on failure; -EOPNOTSUPP when the kernel has no PTP clocks. */
struct hv_rs_ptp *hv_rs_ptp_register(const char *name, int (*read)(const void *data, u64 *ns), const void *data)
{
	struct hv_rs_ptp *p = kzalloc(sizeof(*p), GFP_KERNEL);

	if (!p)
		return ERR_PTR(-ENOMEM);
	p->info.owner = THIS_MODULE;
	strscpy(p->info.name, name, sizeof(p->info.name));
	p->info.gettimex64 = hv_rs_ptp_gettimex;
	p->info.settime64 = hv_rs_ptp_settime;
	p->info.adjtime = hv_rs_ptp_adjtime;
	p->info.adjfine = hv_rs_ptp_adjfine;
	p->info.enable = hv_rs_ptp_enable;
	p->read = read;
	p->data = data;
	p->clock = ptp_clock_register(&p->info, NULL);
	if (IS_ERR_OR_NULL(p->clock)) {
		int ret = p->clock ? PTR_ERR(p->clock) : -EOPNOTSUPP;

		kfree(p);
		return ERR_PTR(ret);
	}
	return p;
}

/* May sleep. Returns when no reader is left in @read. */
void hv_rs_ptp_unregister(struct hv_rs_ptp *p)
{
	ptp_clock_unregister(p->clock);
	kfree(p);
}
