// SPDX-License-Identifier: GPL-2.0
/* XDP for Rust: see shim.c. */
#include <linux/bpf.h>
#include <linux/bpf_trace.h>
#include <linux/filter.h>
#include <linux/mm.h>
#include <linux/skbuff.h>

#include "shim.h"

/* Room that programs find before a frame. */
#define HEADROOM XDP_PACKET_HEADROOM

static_assert(HEADROOM == 256);
static_assert(XDP_ABORTED == 0 && XDP_DROP == 1 && XDP_PASS == 2 && XDP_TX == 3 && XDP_REDIRECT == 4);

int hv_rs_net_bpf(struct net_device *dev, struct netdev_bpf *bpf)
{
	const struct hv_rs_net_priv *p = netdev_priv(dev);

	if (bpf->command != XDP_SETUP_PROG)
		return -EINVAL;
	return p->ops->set_xdp(p->data, bpf->prog, bpf->extack);
}

int hv_rs_net_xdp_xmit(struct net_device *dev, int n, struct xdp_frame **frames, u32 flags)
{
	const struct hv_rs_net_priv *p = netdev_priv(dev);

	return n > 0 ? p->ops->xdp_xmit(p->data, n, frames) : 0;
}

void hv_rs_xdp_frame(struct xdp_frame **frames, u32 i, const u8 **data, u32 *len)
{
	*data = frames[i]->data;
	*len = frames[i]->len;
}

void hv_rs_xdp_frame_return(struct xdp_frame **frames, u32 i)
{
	xdp_return_frame(frames[i]);
}

void hv_rs_xdp_message(struct netlink_ext_ack *extack, u32 which)
{
	if (which == 0)
		NL_SET_ERR_MSG_MOD(extack, "XDP: mtu too large");
	else
		NL_SET_ERR_MSG_MOD(extack, "XDP: not support LRO");
}

/* Largest frame that fits a page with what XDP and an skb need. */
u32 hv_rs_xdp_max_frame(void)
{
	return SKB_WITH_OVERHEAD(PAGE_SIZE - HEADROOM);
}

void hv_rs_prog_add(struct bpf_prog *prog, u32 n)
{
	bpf_prog_add(prog, n);
}

void hv_rs_prog_put(struct bpf_prog *prog)
{
	bpf_prog_put(prog);
}

/* Under RTNL. Takes over a reference of @prog, and gives back that of the one before. */
void hv_rs_napi_set_prog(struct hv_rs_napi *n, struct bpf_prog *prog)
{
	struct bpf_prog *old = rcu_replace_pointer(n->prog, prog, true);

	/* Freed after a grace period. */
	if (old)
		bpf_prog_put(old);
}

struct page *hv_rs_xdp_page(void)
{
	return alloc_page(GFP_ATOMIC | __GFP_NOWARN);
}

void hv_rs_xdp_page_free(struct page *page)
{
	__free_page(page);
}

u8 *hv_rs_xdp_page_data(struct page *page)
{
	return page_address(page) + HEADROOM;
}

/*
 * Runs the program of @n on the frame of *@len bytes in @page, in the poll of @n. Returns what is to be done: XDP_DROP for all
 * kinds of failure; with XDP_REDIRECT the page was given away. *@offset: where the frame begins then, from the start of the page.
 */
u32 hv_rs_xdp_run(struct hv_rs_napi *n, struct page *page, u32 *offset, u32 *len)
{
	struct net_device *dev = n->napi.dev;
	struct bpf_prog *prog;
	struct xdp_buff xdp;
	u32 act;

	rcu_read_lock();
	prog = rcu_dereference(n->prog);
	if (!prog) {
		rcu_read_unlock();
		*offset = HEADROOM;
		return XDP_PASS;
	}
	xdp_init_buff(&xdp, PAGE_SIZE, &n->rxq);
	xdp_prepare_buff(&xdp, page_address(page), HEADROOM, *len, false);
	act = bpf_prog_run_xdp(prog, &xdp);
	*offset = xdp.data - xdp.data_hard_start;
	*len = xdp.data_end - xdp.data;
	switch (act) {
	case XDP_PASS:
	case XDP_TX:
	case XDP_DROP:
		break;
	case XDP_REDIRECT:
		if (!xdp_do_redirect(dev, &xdp, prog)) {
			n->flush = true;
			break;
		}
		fallthrough;
	case XDP_ABORTED:
		trace_xdp_exception(dev, prog, act);
		act = XDP_DROP;
		break;
	default:
		bpf_warn_invalid_xdp_action(dev, prog, act);
		act = XDP_DROP;
	}
	rcu_read_unlock();
	return act;
}

/* A packet of the frame in @page, which it takes over; NULL without memory, with the page freed. */
struct sk_buff *hv_rs_xdp_skb(struct page *page, u32 offset, u32 len)
{
	struct sk_buff *skb = build_skb(page_address(page), PAGE_SIZE);

	if (!skb) {
		__free_page(page);
		return NULL;
	}
	skb_reserve(skb, offset);
	skb_put(skb, len);
	return skb;
}

/* A packet of @dev with a copy of @len bytes, behind @room free ones; NULL without memory. */
struct sk_buff *hv_rs_xdp_copy(struct net_device *dev, const u8 *data, u32 len, u32 room)
{
	struct sk_buff *skb = alloc_skb(room + len, GFP_ATOMIC | __GFP_NOWARN);

	if (!skb)
		return NULL;
	skb->dev = dev;
	skb_reserve(skb, room);
	skb_put_data(skb, data, len);
	return skb;
}
