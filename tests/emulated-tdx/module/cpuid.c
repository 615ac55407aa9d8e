// SPDX-License-Identifier: GPL-2.0
/*
 * CPUID of an emulated TD: which bits the VMM may configure, and the table the
 * "module" shows to the guest.  Host = raw CPUID of the machine KVM runs on.
 * Departs: the configurable bits are a guess, limited to what the host has; 52 address bits
 * are shown, but bits 48 to 51 of a page table entry fault; EBX of leaf 0xD.1 is 0.
 */
#include "tdxe.h"

#define B(n) BIT(n)

/*
 * Feature bits that are always 1 in a TD.  FIX_* name features that need the CPU:
 * they appear only if the host has them (QEMU's TCG lacks PCID, INVPCID, MOVDIRI,
 * MOVDIR64B, XSAVEC, XSAVES).  SET_* are facts about the CPU, or live in MSRs that
 * are emulated here, so they are 1 on every host.
 */
#define FIX_1C	(B(0) | B(1) | B(9) | B(13) | B(17) | B(19) | B(20) | B(22) | B(23) | \
		 B(25) | B(26) | B(30))
#define SET_1C	(B(2) | B(4) | B(15) | B(21) | B(31))
#define FIX_1D	0x0789FBFFu
#define SET_1D	B(21)
#define FIX_7B	(B(0) | B(7) | B(10) | B(18) | B(20) | B(23) | B(24) | B(29))
#define SET_7B	(B(6) | B(13))
#define FIX_7C	(B(27) | B(28))
#define SET_7C	B(24)
#define SET_7D	(B(10) | B(26) | B(27) | B(28) | B(29) | B(31))
#define SET_72D	(B(0) | B(1) | B(2) | B(4))
#define FIX_81C	(B(0) | B(5) | B(8))
#define FIX_81D	(B(20) | B(26) | B(27) | B(29))
#define MAX_LEAF	0x23
#define MAX_EXT_LEAF	0x80000008
/* Feature bits the VMM may switch (again: if the host has them). */
#define CONF_1C	(B(12) | B(28) | B(29))
#define CONF_1C_EMUL B(24)			/* TSC deadline: KVM's LAPIC does it */
#define CONF_1D	(B(22) | B(27) | B(28) | B(29) | B(31))
#define CONF_7B	(B(3) | B(5) | B(8) | B(9) | B(19))
#define CONF_7C	(B(2) | B(3) | B(9) | B(10) | B(22))
#define CONF_7D	B(4)

static void host(u32 fn, u32 idx, u32 *r)
{
	cpuid_count(fn, idx, &r[0], &r[1], &r[2], &r[3]);
}

u64 tdxe_supported_xfam(void)
{
	return kvm_caps.supported_xcr0 | 3;
}

static void cap(struct kvm_cpuid_entry2 *out, int max, int *n, u32 fn, u32 idx,
		u32 a, u32 b, u32 c, u32 d)
{
	if (*n < max)
		out[*n] = (struct kvm_cpuid_entry2) { .function = fn, .index = idx,
			.eax = a, .ebx = b, .ecx = c, .edx = d };
	++*n;
}

/* Fill the CAPABILITIES list (masks); returns the number of entries it has. */
int tdxe_cpuid_caps(struct kvm_cpuid_entry2 *out, int max)
{
	u32 h1[4], h7[4], h88[4];
	int n = 0, i;

	host(1, 0, h1);
	host(7, 0, h7);
	host(0x80000008, 0, h88);
	cap(out, max, &n, 1, 0, 0, 0x00ff0000, (h1[2] & CONF_1C) | CONF_1C_EMUL,
	    h1[3] & CONF_1D);
	/* Bits 11:0 of EBX (64-byte lines) are fixed. */
	for (i = 0; i < 4; i++)
		cap(out, max, &n, 4, i, 0xffffc3ff, 0xfffff000, ~0u, i < 3 ? 0xfffffffb : 7);
	cap(out, max, &n, 7, 0, 0, h7[1] & CONF_7B, h7[2] & CONF_7C, h7[3] & CONF_7D);
	for (i = 0; i < 4; i++)
		cap(out, max, &n, 0x1f, i, 0x1f, 0xffff, 0xffff, 0);
	cap(out, max, &n, 0x80000006, 0, 0, 0, ~0u, 0);
	/* EAX[23:16] is KVM's GPAW knob, not a bit of the module. */
	cap(out, max, &n, 0x80000008, 0, 0x00ff0000, h88[1] & B(9), 0, 0);
	return n;
}

static void put(struct tdxe_vm *td, u32 fn, int idx, u32 a, u32 b, u32 c, u32 d)
{
	if (WARN_ON_ONCE(td->nr_cpuid >= TDXE_NR_CPUID))
		return;
	td->cpuid[td->nr_cpuid++] = (struct tdxe_cpuid) { .fn = fn,
		.idx = idx < 0 ? 0 : idx, .sub = idx >= 0, .r = { a, b, c, d } };
}

/* A leaf that the VMM can read but that is #VE for the guest. */
static void put_ve(struct tdxe_vm *td, u32 fn, int idx, u32 a, u32 b, u32 c, u32 d)
{
	put(td, fn, idx, a, b, c, d);
	td->cpuid[td->nr_cpuid - 1].ve = true;
}

static u32 xsave_size(u64 mask)
{
	u32 r[4], size = 576;
	int i;

	for (i = 2; i < 63; i++) {
		if (!(mask & BIT_ULL(i)))
			continue;
		host(0xd, i, r);
		if (!(r[2] & 1))
			size = max(size, r[0] + r[1]);
	}
	return size;
}

static void build(struct kvm *kvm, const u32 conf[][4], const struct kvm_cpuid_entry2 *caps,
		  int ncaps)
{
	struct tdxe_vm *td = to_td(kvm);
	u32 h1[4], h7[4], hd[4], h1d[4], h81[4], h88[4], c1[4] = {}, c7[4] = {}, c86[4] = {}, c88[4] = {};
	u32 topo[4][4] = {}, cache[4][4] = {}, khz;
	int i, ntopo = 0;

	for (i = 0; i < ncaps; i++) {
		switch (caps[i].function) {
		case 1: memcpy(c1, conf[i], 16); break;
		case 4: memcpy(cache[caps[i].index], conf[i], 16); break;
		case 7: memcpy(c7, conf[i], 16); break;
		case 0x1f: memcpy(topo[caps[i].index], conf[i], 16); break;
		case 0x80000006: memcpy(c86, conf[i], 16); break;
		case 0x80000008: memcpy(c88, conf[i], 16); break;
		}
	}
	host(1, 0, h1);
	host(7, 0, h7);
	host(0xd, 0, hd);
	host(0xd, 1, h1d);
	host(0x80000001, 0, h81);
	host(0x80000008, 0, h88);
	/* Bits that XFAM governs follow XFAM, whatever the VMM asked for. */
	if (!(td->xfam & XFEATURE_MASK_YMM)) {
		c1[2] &= ~(B(12) | B(28) | B(29));
		c7[1] &= ~B(5);
		c7[2] &= ~(B(9) | B(10));
	}
	if (!(td->xfam & XFEATURE_MASK_PKRU))
		c7[2] &= ~B(3);

	td->nr_cpuid = 0;
	put(td, 0, -1, MAX_LEAF, 0x756e6547, 0x6c65746e, 0x49656e69);
	put(td, 1, -1, tdxe.fms, (c1[1] & 0xff0000) | 0x800,
	    (h1[2] & FIX_1C) | SET_1C | c1[2], (h1[3] & FIX_1D) | SET_1D | c1[3]);
	put(td, 3, -1, 0, 0, 0, 0);
	for (i = 0; i < 4; i++)
		put(td, 4, i, cache[i][0], cache[i][1] | 0x3f, cache[i][2], cache[i][3]);
	put(td, 4, 4, 0, 0, 0, 0);
	put(td, 5, -1, 0, 0, 0, 0);
	put_ve(td, 6, -1, B(2), 0, 0, 0);
	put(td, 7, 0, 2, (h7[1] & FIX_7B) | SET_7B | c7[1], (h7[2] & FIX_7C) | SET_7C | c7[2],
	    SET_7D | c7[3]);
	put(td, 7, 1, 0, 0, 0, 0);
	put(td, 7, 2, 0, 0, 0, SET_72D);
	put(td, 8, -1, 0, 0, 0, 0);
	put(td, 0xa, -1, 0, 0, 0, 0);
	/* Leaf 0xB: SMT and core levels of the configured topology. */
	for (i = 0; i < 4; i++) {
		u32 type = (topo[i][2] >> 8) & 0xff;

		if (type)
			ntopo = i + 1;
		if (i < 2)
			put_ve(td, 0xb, i, topo[i][0], topo[i][1],
			       (type && type <= 2) ? (topo[i][2] & 0xff00) | i : i, 0);
	}
	put(td, 0xd, 0, (u32)(td->xfam & kvm_caps.supported_xcr0), xsave_size(3),
	    xsave_size(td->xfam & kvm_caps.supported_xcr0), 0);
	put(td, 0xd, 1, h1d[0] & (B(0) | B(1) | B(2)), 0, 0, 0);
	for (i = 2; i <= 18; i++) {
		u32 r[4] = {};

		if (td->xfam & BIT_ULL(i))
			host(0xd, i, r);
		put(td, 0xd, i, r[0], r[1], r[2], 0);
	}
	put(td, 0xe, -1, 0, 0, 0, 0);
	for (i = 0x11; i <= 0x13; i++)
		put(td, i, -1, 0, 0, 0, 0);
	put(td, 0x14, 0, 0, 0, 0, 0);
	put(td, 0x14, 1, 0, 0, 0, 0);
	khz = kvm->arch.default_tsc_khz;
	put(td, 0x15, -1, 1, khz / 25000, 25000000, 0);
	put(td, 0x19, -1, 0, 0, 0, 0);
	put(td, 0x1c, -1, 0, 0, 0, 0);
	put(td, 0x1d, 0, 0, 0, 0, 0);
	put(td, 0x1d, 1, 0, 0, 0, 0);
	put(td, 0x1e, -1, 0, 0, 0, 0);
	for (i = 0; i <= min(ntopo, 3); i++)
		put_ve(td, 0x1f, i, topo[i][0], topo[i][1], (topo[i][2] & 0xff00) | i, 0);
	put(td, 0x20, -1, 0, 0, 0, 0);
	put(td, 0x21, 0, 0, 0x65746e49, 0x20202020, 0x5844546c);
	put(td, 0x22, -1, 0, 0, 0, 0);
	for (i = 0; i < 4; i++)
		put(td, MAX_LEAF, i, 0, 0, 0, 0);
	put(td, 0x80000000, -1, MAX_EXT_LEAF, 0, 0, 0);
	put(td, 0x80000001, -1, 0, 0, h81[2] & FIX_81C, (h81[3] & FIX_81D) | B(11));
	put_ve(td, 0x80000006, -1, 0, 0, c86[2], 0);
	put(td, 0x80000007, -1, 0, 0, 0, B(8));
	/* CPUs with TDX have 52 address bits, whatever this host and GPAW say. */
	put(td, 0x80000008, -1, 52 | (48 << 8), c88[1], 0, 0);
}

/*
 * The values that INIT_VM's list gives for each configurable leaf, in the order of
 * CAPABILITIES; what KVM refuses is EINVAL (KVM: setup_tdparams_eptp_controls(),
 * setup_tdparams_cpuids()). The caller frees *conf.
 */
int tdxe_cpuid_read_config(struct kvm_cpuid2 *user, u32 (**conf)[4])
{
	struct kvm_cpuid_entry2 caps[32], *e;
	u32 (*c)[4];
	int n, i, found = 0;

	n = tdxe_cpuid_caps(caps, ARRAY_SIZE(caps));
	e = kvm_find_cpuid_entry2(user->entries, user->nent, 0x80000008, 0);
	if (!e || ((e->eax >> 16) & 0xff) != TDXE_GPAW)	/* 52 would need 5 levels */
		return -EINVAL;

	c = kcalloc(n, sizeof(*c), GFP_KERNEL);
	if (!c)
		return -ENOMEM;
	for (i = 0; i < n; i++) {
		e = kvm_find_cpuid_entry2(user->entries, user->nent, caps[i].function,
					  caps[i].index);
		if (!e)
			continue;	/* absent: all bits off */
		found++;
		if (e->function == 7 && !e->index &&
		    ((e->ebx & (B(4) | B(11))) || (e->ecx & B(5))))
			goto refused;	/* TSX, WAITPKG */
		c[i][0] = e->eax;
		c[i][1] = e->ebx;
		c[i][2] = e->ecx;
		c[i][3] = e->edx;
	}
	if (found != user->nent)	/* an unknown leaf, or one given twice */
		goto refused;
	*conf = c;
	return 0;
refused:
	kfree(c);
	return -EINVAL;
}

/* The module's part: refuse bits that are not configurable, build the table. */
int tdxe_cpuid_init(struct kvm *kvm, const u32 conf[][4], u64 *hw_error)
{
	struct kvm_cpuid_entry2 caps[32];
	int n, i;

	n = tdxe_cpuid_caps(caps, ARRAY_SIZE(caps));
	for (i = 0; i < n; i++) {
		if ((conf[i][0] & ~caps[i].eax) || (conf[i][1] & ~caps[i].ebx) ||
		    (conf[i][2] & ~caps[i].ecx) || (conf[i][3] & ~caps[i].edx)) {
			*hw_error = TDX_E_OPERAND_INVALID | OP_CPUID_CONFIG;
			return -EINVAL;
		}
	}
	build(kvm, conf, caps, n);
	return 0;
}

/* The table for KVM_TDX_GET_CPUID: raw values, whether #VE for the guest or not. */
int tdxe_cpuid_copy(struct kvm_vcpu *vcpu, struct kvm_cpuid2 __user *to)
{
	struct tdxe_vm *td = to_td(vcpu->kvm);
	struct kvm_cpuid_entry2 *e;
	struct kvm_cpuid2 hdr;
	int i, r = 0;

	if (copy_from_user(&hdr, to, sizeof(hdr)))
		return -EFAULT;
	e = kcalloc(td->nr_cpuid, sizeof(*e), GFP_KERNEL);
	if (!e)
		return -ENOMEM;
	for (i = 0; i < td->nr_cpuid; i++) {
		const struct tdxe_cpuid *c = &td->cpuid[i];

		e[i] = (struct kvm_cpuid_entry2) { .function = c->fn, .index = c->idx,
			.flags = c->sub ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
			.eax = c->r[0], .ebx = c->r[1], .ecx = c->r[2], .edx = c->r[3] };
		if (c->fn == 0x80000008)
			e[i].eax = (e[i].eax & ~0xff0000u) | TDXE_GPAW << 16;
		if (c->fn == 1)
			e[i].ebx |= (vcpu->vcpu_id & 0xff) << 24;
		if (c->fn == 0xb || c->fn == 0x1f)
			e[i].edx = vcpu->vcpu_id;
	}
	if (hdr.nent < td->nr_cpuid)
		r = -E2BIG;
	hdr.nent = td->nr_cpuid;	/* told in either case */
	if (copy_to_user(to, &hdr, sizeof(hdr)))
		r = -EFAULT;
	if (!r && copy_to_user(to->entries, e, td->nr_cpuid * sizeof(*e)))
		r = -EFAULT;
	kfree(e);
	return r;
}

/*
 * CPUID as executed by the guest; false = #VE: leaves and sub-leaves that the table
 * does not have, and those marked there (of which the topology leaves come alive
 * with TD_CTLS.ENUM_TOPOLOGY).
 */
bool tdxe_cpuid_lookup(struct kvm_vcpu *vcpu, u32 fn, u32 idx, u32 *r)
{
	struct tdxe_vm *td = to_td(vcpu->kvm);
	const struct tdxe_cpuid *c = NULL;
	bool topo, have_fn = false;
	int i;

	/* Out of range: answered as the last basic leaf. */
	if ((fn > MAX_LEAF && fn < 0x40000000) || (fn >= 0x50000000 && fn < 0x80000000) ||
	    fn > MAX_EXT_LEAF)
		fn = MAX_LEAF;
	topo = (fn == 0xb || fn == 0x1f) && (td->td_ctls & TDXE_CTL_TOPOLOGY);
	for (i = 0; i < td->nr_cpuid && !c; i++) {
		if (td->cpuid[i].fn != fn)
			continue;
		have_fn = true;
		if (!td->cpuid[i].sub || td->cpuid[i].idx == idx)
			c = &td->cpuid[i];
	}
	if (topo ? !have_fn : !c || c->ve)
		return false;
	if (c)
		memcpy(r, c->r, 16);
	else
		memset(r, 0, 16);
	/* Values that depend on the vCPU or on its current state. */
	switch (fn) {
	case 1:
		r[1] |= (vcpu->vcpu_id & 0xff) << 24;
		if (kvm_is_cr4_bit_set(vcpu, X86_CR4_OSXSAVE))
			r[2] |= B(27);
		break;
	case 7:
		if (!idx && kvm_is_cr4_bit_set(vcpu, X86_CR4_PKE))
			r[2] |= B(4);
		break;
	case 0xb:
	case 0x1f:
		if (!c)
			r[2] = idx & 0xff;
		r[3] = vcpu->vcpu_id;
		break;
	case 0xd:
		if (!idx)
			r[1] = xsave_size(vcpu->arch.xcr0);
		break;
	case 0x80000001:
		if (!is_64_bit_mode(vcpu))
			r[3] &= ~B(11);		/* SYSCALL */
		break;
	}
	return true;
}
