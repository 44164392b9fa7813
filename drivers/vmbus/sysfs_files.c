// SPDX-License-Identifier: GPL-2.0
/*
 * The sysfs files of the bus, its drivers, devices and channels: names and modes. What they hold comes from sysfs.rs, by
 * name. The files are those of the C driver (Documentation/ABI/stable/sysfs-bus-vmbus).
 */
#include <linux/device.h>
#include <linux/kobject.h>
#include <linux/string.h>
#include <linux/sysfs.h>

/* sysfs.rs */
ssize_t hv_rs_bus_show(const char *name, char *buf);
ssize_t hv_rs_driver_store(struct device_driver *drv, const char *name, const char *buf, size_t count);
ssize_t hv_rs_device_show(struct device *dev, const char *name, char *buf);
bool hv_rs_device_has_monitor(struct device *dev);
ssize_t hv_rs_channel_show(struct kobject *kobj, const char *name, char *buf);
ssize_t hv_rs_channel_store(struct kobject *kobj, const char *name, const char *buf, size_t count);
bool hv_rs_channel_has_monitor(struct kobject *kobj);
void hv_rs_channel_release(struct kobject *kobj);

/* Bus */

static ssize_t hibernation_show(const struct bus_type *bus, char *buf)
{
	return hv_rs_bus_show("hibernation", buf);
}
static BUS_ATTR_RO(hibernation);

static struct attribute *bus_attrs[] = { &bus_attr_hibernation.attr, NULL };
ATTRIBUTE_GROUPS(bus);

const struct attribute_group **hv_rs_bus_groups(void)
{
	return bus_groups;
}

/* Drivers */

#define DRV(name)									\
	static ssize_t name##_store(struct device_driver *drv, const char *buf, size_t count)	\
	{										\
		return hv_rs_driver_store(drv, #name, buf, count);			\
	}										\
	static DRIVER_ATTR_WO(name)

DRV(new_id);
DRV(remove_id);

static struct attribute *drv_attrs[] = { &driver_attr_new_id.attr, &driver_attr_remove_id.attr, NULL };
ATTRIBUTE_GROUPS(drv);

const struct attribute_group **hv_rs_drv_groups(void)
{
	return drv_groups;
}

/* Devices. `x(name)` for each file. */

#define DEVICE_FILES(x)									\
	x(id) x(state) x(monitor_id) x(class_id) x(device_id) x(modalias)		\
	x(server_monitor_pending) x(client_monitor_pending)				\
	x(server_monitor_latency) x(client_monitor_latency)				\
	x(server_monitor_conn_id) x(client_monitor_conn_id)				\
	x(out_intr_mask) x(out_read_index) x(out_write_index)				\
	x(out_read_bytes_avail) x(out_write_bytes_avail)				\
	x(in_intr_mask) x(in_read_index) x(in_write_index)				\
	x(in_read_bytes_avail) x(in_write_bytes_avail)					\
	x(channel_vp_mapping) x(vendor) x(device)

#define DEFINE_FILE(name)								\
	static ssize_t name##_show(struct device *dev, struct device_attribute *attr, char *buf) \
	{										\
		return hv_rs_device_show(dev, #name, buf);				\
	}										\
	static DEVICE_ATTR_RO(name);

DEVICE_FILES(DEFINE_FILE)
#ifdef CONFIG_NUMA
DEFINE_FILE(numa_node)
#endif

#define LIST_FILE(name) &dev_attr_##name.attr,

static struct attribute *dev_attrs[] = {
	DEVICE_FILES(LIST_FILE)
#ifdef CONFIG_NUMA
	LIST_FILE(numa_node)
#endif
	NULL
};

static umode_t dev_visible(struct kobject *kobj, struct attribute *attr, int n)
{
	if (strstr(attr->name, "monitor") && !hv_rs_device_has_monitor(kobj_to_dev(kobj)))
		return 0;
	return attr->mode;
}

static const struct attribute_group dev_group = { .attrs = dev_attrs, .is_visible = dev_visible };
__ATTRIBUTE_GROUPS(dev);

const struct attribute_group **hv_rs_dev_groups(void)
{
	return dev_groups;
}

/* Channels */

#define CHAN(_name, _mode) static struct attribute chan_attr_##_name = { .name = #_name, .mode = _mode }

CHAN(out_mask, 0444);
CHAN(in_mask, 0444);
CHAN(read_avail, 0444);
CHAN(write_avail, 0444);
CHAN(cpu, 0644);
CHAN(pending, 0444);
CHAN(latency, 0444);
CHAN(interrupts, 0444);
CHAN(events, 0444);
CHAN(intr_in_full, 0444);
CHAN(intr_out_empty, 0444);
CHAN(out_full_first, 0444);
CHAN(out_full_total, 0444);
CHAN(monitor_id, 0444);
CHAN(subchannel_id, 0444);

static struct attribute *chan_attrs[] = {
	&chan_attr_out_mask, &chan_attr_in_mask, &chan_attr_read_avail, &chan_attr_write_avail, &chan_attr_cpu,
	&chan_attr_pending, &chan_attr_latency, &chan_attr_interrupts, &chan_attr_events, &chan_attr_intr_in_full,
	&chan_attr_intr_out_empty, &chan_attr_out_full_first, &chan_attr_out_full_total, &chan_attr_monitor_id,
	&chan_attr_subchannel_id, NULL
};

static umode_t chan_visible(struct kobject *kobj, struct attribute *attr, int n)
{
	if ((attr == &chan_attr_pending || attr == &chan_attr_latency || attr == &chan_attr_monitor_id) &&
	    !hv_rs_channel_has_monitor(kobj))
		return 0;
	return attr->mode;
}

static const struct attribute_group chan_group = { .attrs = chan_attrs, .is_visible = chan_visible };
__ATTRIBUTE_GROUPS(chan);

static ssize_t chan_show(struct kobject *kobj, struct attribute *attr, char *buf)
{
	return hv_rs_channel_show(kobj, attr->name, buf);
}

static ssize_t chan_store(struct kobject *kobj, struct attribute *attr, const char *buf, size_t count)
{
	return hv_rs_channel_store(kobj, attr->name, buf, count);
}

static const struct sysfs_ops chan_ops = { .show = chan_show, .store = chan_store };

static const struct kobj_type chan_type = {
	.sysfs_ops = &chan_ops,
	.default_groups = chan_groups,
	.release = hv_rs_channel_release,
};

/* Adds channels/@number below @parent, and announces it. On error @kobj has been released. */
int hv_rs_channel_add(struct kobject *kobj, struct kset *parent, u32 number)
{
	int ret;

	kobj->kset = parent;
	ret = kobject_init_and_add(kobj, &chan_type, NULL, "%u", number);
	if (ret) {
		kobject_put(kobj);
		return ret;
	}
	kobject_uevent(kobj, KOBJ_ADD);
	return 0;
}

void hv_rs_channel_del(struct kobject *kobj)
{
	kobject_del(kobj);
	kobject_put(kobj);
}

struct kset *hv_rs_channels_kset(struct device *dev)
{
	return kset_create_and_add("channels", NULL, &dev->kobj);
}
