// SPDX-License-Identifier: GPL-2.0-only OR MIT

/*
 * XDP programs for the tests, one for each verdict. They judge UDP over IPv4 to port 7 and let everything else
 * pass. "seen" counts what was judged.
 */

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

/* Where "redirect" sends; the test fills it in. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} target SEC(".maps");

/* The Ethernet header of what is judged, else NULL. */
static __always_inline struct ethhdr *judged(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + sizeof(*eth);
	struct udphdr *udp = (void *)ip + sizeof(*ip);
	__u32 key = 0;
	__u64 *count;

	if ((void *)(udp + 1) > end)
		return NULL;
	if (eth->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5 ||
	    ip->protocol != IPPROTO_UDP || udp->dest != bpf_htons(7))
		return NULL;
	count = bpf_map_lookup_elem(&seen, &key);
	if (count)
		__sync_fetch_and_add(count, 1);
	return eth;
}

SEC("xdp/pass")
int pass(struct xdp_md *ctx)
{
	judged(ctx);
	return XDP_PASS;
}

SEC("xdp/drop")
int drop(struct xdp_md *ctx)
{
	return judged(ctx) ? XDP_DROP : XDP_PASS;
}

SEC("xdp/abort")
int aborted(struct xdp_md *ctx)
{
	return judged(ctx) ? XDP_ABORTED : XDP_PASS;
}

/* Back to the sender. */
SEC("xdp/tx")
int tx(struct xdp_md *ctx)
{
	struct ethhdr *eth = judged(ctx);
	unsigned char to[ETH_ALEN];

	if (!eth)
		return XDP_PASS;
	__builtin_memcpy(to, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, to, ETH_ALEN);
	return XDP_TX;
}

SEC("xdp/redirect")
int redirect(struct xdp_md *ctx)
{
	return judged(ctx) ? bpf_redirect_map(&target, 0, XDP_PASS) : XDP_PASS;
}

/* Moves the beginning of the frame by 14 bytes: an outer Ethernet header of its own, with a type for experiments. */
SEC("xdp/grow")
int grow(struct xdp_md *ctx)
{
	struct ethhdr *eth, *inner;
	void *end;

	if (!judged(ctx))
		return XDP_PASS;
	if (bpf_xdp_adjust_head(ctx, -(int)sizeof(*eth)))
		return XDP_ABORTED;
	eth = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	inner = eth + 1;
	if ((void *)(inner + 1) > end)
		return XDP_ABORTED;
	__builtin_memcpy(eth->h_dest, inner->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, inner->h_dest, ETH_ALEN);
	eth->h_proto = bpf_htons(ETH_P_802_EX1);
	return XDP_TX;
}

char _license[] SEC("license") = "Dual MIT/GPL";
