// SPDX-License-Identifier: GPL-2.0
/*
 * Packets to send: where they are in memory, and what is changed in them before. Called from Rust alone.
 */
#include <linux/etherdevice.h>
#include <linux/if_vlan.h>
#include <linux/ip.h>
#include <linux/mm.h>
#include <linux/skbuff.h>
#include <linux/tcp.h>
#include <net/ip6_checksum.h>
#include <net/tcp.h>

#include "shim.h"

int hv_rs_skb_copy_bits(const struct sk_buff *skb, u32 offset, u8 *to, u32 len)
{
	return skb_copy_bits(skb, offset, to, len);
}

/* The memory that holds @len bytes from @at on, which is mapped linearly. */
void hv_rs_range_of(const void *at, u32 len, struct hv_rs_range *range)
{
	range->pfn = virt_to_phys((void *)at) >> PAGE_SHIFT;
	range->offset = offset_in_page(at);
	range->len = len;
}

/* No range is near 4 GiB. */
static __always_inline u32 hv_rs_pages(u32 offset, u32 len)
{
	return (offset + len + (u32)PAGE_SIZE - 1) >> PAGE_SHIFT;
}

/*
 * The memory of a packet, in at most @max ranges and @max_pages pages; returns how many ranges. 0: it takes more.
 */
u32 hv_rs_skb_ranges(const struct sk_buff *skb, struct hv_rs_range *ranges, u32 max, u32 max_pages)
{
	const struct skb_shared_info *shared = skb_shinfo(skb);
	u32 count = 0, pages = 0, i;

	if (shared->nr_frags + 1 > max)
		return 0;
	if (skb_headlen(skb))
		hv_rs_range_of(skb->data, skb_headlen(skb), &ranges[count++]);
	for (i = 0; i < shared->nr_frags; i++) {
		const skb_frag_t *frag = &shared->frags[i];
		u32 offset = skb_frag_off(frag);

		ranges[count].pfn = page_to_pfn(skb_frag_page(frag)) + (offset >> PAGE_SHIFT);
		ranges[count].offset = offset_in_page(offset);
		ranges[count].len = skb_frag_size(frag);
		count++;
	}
	for (i = 0; i < count; i++)
		pages += hv_rs_pages(ranges[i].offset, ranges[i].len);
	return pages <= max_pages ? count : 0;
}

/*
 * Writes a range as VMBus has it, with the numbers of its pages, which follow each other, into the words at @to that end before @end.
 * Returns the word behind it; NULL when there are too few, or it has no page.
 */
static __always_inline __le64 *hv_rs_put_range(__le64 *to, const __le64 *end, u64 pfn, u32 offset, u32 len)
{
	u32 pages = hv_rs_pages(offset, len);
	const __le64 *last = to + pages;

	if (unlikely(last >= end || !pages))
		return NULL;
	*to = cpu_to_le64(len | (u64)offset << 32);
	do {
		*++to = cpu_to_le64(pfn++);
	} while (to != last);
	return to + 1;
}

/*
 * After hv_rs_tx_prepare(): writes ranges as VMBus has them into the words from @to on, @max at most, which nobody else writes: the
 * first @header bytes of the room before the packet, and the packet. No range: there are too few words.
 */
struct hv_rs_put hv_rs_tx_put_ranges(const struct hv_rs_tx *tx, u32 header, __le64 *to, u32 max)
{
	const struct sk_buff *skb = tx->skb;
	const struct skb_shared_info *shared = skb_shinfo(skb);
	const skb_frag_t *frag = shared->frags, *last = frag + shared->nr_frags;
	struct hv_rs_put none = {}, put = { .ranges = shared->nr_frags + 1 };
	const __le64 *start = to, *end = to + max;
	u32 headlen = skb_headlen(skb);

	to = hv_rs_put_range(to, end, virt_to_phys(skb->head) >> PAGE_SHIFT, offset_in_page(skb->head), header);
	if (headlen && likely(to)) {
		to = hv_rs_put_range(to, end, virt_to_phys(skb->data) >> PAGE_SHIFT, offset_in_page(skb->data), headlen);
		put.ranges++;
	}
	for (; frag != last && likely(to); frag++) {
		u32 offset = skb_frag_off(frag);

		to = hv_rs_put_range(to, end, page_to_pfn(skb_frag_page(frag)) + (offset >> PAGE_SHIFT),
				     offset_in_page(offset), skb_frag_size(frag));
	}
	if (unlikely(!to))
		return none;
	put.words = to - start;
	return put;
}

int hv_rs_skb_linearize(struct sk_buff *skb)
{
	return skb_linearize(skb);
}

int hv_rs_skb_checksum_help(struct sk_buff *skb)
{
	return skb_checksum_help(skb);
}

/* Moves the VLAN header that a packet begins with into the packet's metadata. */
int hv_rs_skb_take_vlan(struct sk_buff *skb)
{
	u16 tci;
	int ret;

	skb_reset_mac_header(skb);
	if (!eth_type_vlan(eth_hdr(skb)->h_proto))
		return 0;
	ret = __skb_vlan_pop(skb, &tci);
	if (!ret)
		__vlan_hwaccel_put_tag(skb, htons(ETH_P_8021Q), tci);
	return ret;
}

/*
 * Readies the headers of a packet that the device is to cut into segments: lengths that depend on the segment are 0, and the checksum
 * covers the pseudo header without its length. The headers may be written.
 */
static __always_inline void hv_rs_skb_prepare_lso(struct sk_buff *skb)
{
	if (skb->protocol == htons(ETH_P_IP)) {
		struct iphdr *ip = ip_hdr(skb);

		ip->tot_len = 0;
		ip->check = 0;
		tcp_hdr(skb)->check = ~csum_tcpudp_magic(ip->saddr, ip->daddr, 0, IPPROTO_TCP, 0);
	} else {
		tcp_v6_gso_csum_prep(skb);
	}
}

/*
 * Gives the packet @room bytes of headroom that may be written, from tx->head on, and headers of its own, which are readied if it is
 * to be cut into segments.
 */
int hv_rs_tx_prepare(struct hv_rs_tx *tx, u32 room)
{
	struct sk_buff *skb = tx->skb;
	int ret = skb_cow_head(skb, room);

	if (ret)
		return ret;
	tx->data = skb->data;
	tx->head = skb->head;
	tx->room = room;
	if (tx->flags & HV_RS_TX_GSO)
		hv_rs_skb_prepare_lso(skb);
	return 0;
}

void hv_rs_skb_drop(struct sk_buff *skb)
{
	dev_kfree_skb_any(skb);
}
