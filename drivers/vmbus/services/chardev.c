// SPDX-License-Identifier: GPL-2.0
/*
 * What services/chardev.rs cannot reach from Rust: struct miscdevice with poll, wait queues whose condition is a word.
 * Called from Rust alone.
 */
#include <linux/fs.h>
#include <linux/kref.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/refcount.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/wait.h>

/* Kept the same as services/ffi.rs by hand. */
struct hv_rs_node_ops {
	int (*open)(const void *data);
	void (*release)(const void *data);
	ssize_t (*read)(const void *data, char __user *buf, size_t count);
	ssize_t (*write)(const void *data, const char __user *buf, size_t count);
	void (*put)(const void *data);
};

enum { NODE_NOTHING, NODE_MESSAGE, NODE_GONE };

struct hv_rs_node {
	/* References to this structure: the signal's, and one for all users. */
	struct kref kref;
	/* Users of @data: the registration and open files. */
	refcount_t users;
	/* Orders writers of @readiness. */
	spinlock_t lock;
	u32 readiness;
	wait_queue_head_t wait;
	struct miscdevice misc;
	/* Whose functions @ops are. */
	struct module *module;
	const struct hv_rs_node_ops *ops;
	const void *data;
};

static void node_free(struct kref *kref)
{
	kfree(container_of(kref, struct hv_rs_node, kref));
}

static void node_user_put(struct hv_rs_node *node)
{
	if (refcount_dec_and_test(&node->users)) {
		node->ops->put(node->data);
		kref_put(&node->kref, node_free);
	}
}

static int node_open(struct inode *inode, struct file *file)
{
	/* Set by the misc core, whose lock is held: the registration is still there, and a user. */
	struct hv_rs_node *node = container_of(file->private_data, struct hv_rs_node, misc);
	int ret;

	if (!try_module_get(node->module))
		return -ENODEV;
	ret = node->ops->open(node->data);
	if (ret) {
		module_put(node->module);
		return ret;
	}
	refcount_inc(&node->users);
	file->private_data = node;
	return 0;
}

static int node_release(struct inode *inode, struct file *file)
{
	struct hv_rs_node *node = file->private_data;
	struct module *module = node->module;

	node->ops->release(node->data);
	node_user_put(node);
	module_put(module);
	return 0;
}

static ssize_t node_read(struct file *file, char __user *buf, size_t count, loff_t *pos)
{
	struct hv_rs_node *node = file->private_data;

	if (READ_ONCE(node->readiness) == NODE_NOTHING) {
		if (file->f_flags & O_NONBLOCK)
			return -EAGAIN;
		if (wait_event_interruptible(node->wait, READ_ONCE(node->readiness) != NODE_NOTHING))
			return -EINTR;
	}
	return node->ops->read(node->data, buf, count);
}

static ssize_t node_write(struct file *file, const char __user *buf, size_t count, loff_t *pos)
{
	struct hv_rs_node *node = file->private_data;

	return node->ops->write(node->data, buf, count);
}

static __poll_t node_poll(struct file *file, poll_table *wait)
{
	struct hv_rs_node *node = file->private_data;

	poll_wait(file, &node->wait, wait);
	switch (READ_ONCE(node->readiness)) {
	case NODE_NOTHING:
		return 0;
	case NODE_MESSAGE:
		return EPOLLIN | EPOLLRDNORM;
	default:
		return EPOLLERR | EPOLLHUP;
	}
}

/*
 * Static, since the VFS uses file->f_op after release. It keeps this module; node_open() keeps the one that has the rest
 * of the code.
 */
static const struct file_operations node_fops = {
	.owner = THIS_MODULE,
	.open = node_open,
	.release = node_release,
	.read = node_read,
	.write = node_write,
	.poll = node_poll,
	.llseek = noop_llseek,
};

struct hv_rs_node *hv_rs_node_new(void)
{
	struct hv_rs_node *node = kzalloc(sizeof(*node), GFP_KERNEL);

	if (!node)
		return NULL;
	kref_init(&node->kref);
	spin_lock_init(&node->lock);
	init_waitqueue_head(&node->wait);
	return node;
}

void hv_rs_node_put(struct hv_rs_node *node)
{
	kref_put(&node->kref, node_free);
}

void hv_rs_node_set(struct hv_rs_node *node, u32 readiness)
{
	unsigned long flags;

	spin_lock_irqsave(&node->lock, flags);
	if (node->readiness != NODE_GONE)
		WRITE_ONCE(node->readiness, readiness);
	spin_unlock_irqrestore(&node->lock, flags);
	if (readiness != NODE_NOTHING)
		wake_up_interruptible_all(&node->wait);
}

/* May sleep. Takes the reference to @data if it returns 0. */
int hv_rs_node_register(struct hv_rs_node *node, const char *name, struct module *module,
			const struct hv_rs_node_ops *ops, const void *data)
{
	int ret;

	node->misc.minor = MISC_DYNAMIC_MINOR;
	node->misc.name = name;
	node->misc.fops = &node_fops;
	node->module = module;
	node->ops = ops;
	node->data = data;
	/* Before the first open. */
	refcount_set(&node->users, 1);
	kref_get(&node->kref);
	ret = misc_register(&node->misc);
	if (ret)
		kref_put(&node->kref, node_free);
	return ret;
}

/* May sleep. Nothing is opened afterwards; files that are open keep @data. */
void hv_rs_node_unregister(struct hv_rs_node *node)
{
	misc_deregister(&node->misc);
	node_user_put(node);
}
