// SPDX-License-Identifier: GPL-2.0
/*
 * Virtualization exceptions: what the module injects instead of an exit, and
 * TDG.VP.VEINFO.GET, by which the guest collects the reason. Until it has, another
 * #VE is a double fault (module: tdx_inject_ve() in td_other_exits.c).
 */
#include "tdxe.h"
#include "kvm_emulate.h"

static void inject(struct kvm_vcpu *vcpu, u32 reason, u64 qual, u64 gpa, u64 gla, u32 len)
{
	struct tdxe_vcpu *tv = to_tv(vcpu);

	if (tv->ve.valid) {		/* previous #VE not collected yet */
		kvm_queue_exception_e(vcpu, DF_VECTOR, 0);
		return;
	}
	tv->ve = (struct tdxe_ve) { .valid = true, .reason = reason, .len = len,
				    .qual = qual, .gpa = gpa, .gla = gla };
	atomic64_inc(&to_td(vcpu->kvm)->counts.ve);
	kvm_queue_exception(vcpu, TDXE_VE_VECTOR);
}

void tdxe_inject_ve(struct kvm_vcpu *vcpu, u32 reason, u64 qual, u32 len)
{
	inject(vcpu, reason, qual, 0, 0, len);
}

int tdxe_ve_insn(struct kvm_vcpu *vcpu, u32 reason)
{
	struct tdxe_insn in;

	tdxe_decode(vcpu, &in);
	tdxe_inject_ve(vcpu, reason, 0, in.len);
	return 1;
}

int tdxe_ve_io(struct kvm_vcpu *vcpu)
{
	u32 info = to_svm(vcpu)->vmcb->control.exit_info_1;
	u64 next = to_svm(vcpu)->vmcb->control.exit_info_2;
	u32 size = (info & SVM_IOIO_SIZE_MASK) >> SVM_IOIO_SIZE_SHIFT;
	struct tdxe_insn in;
	u64 qual;

	tdxe_decode(vcpu, &in);
	qual = (size - 1) | (info & SVM_IOIO_TYPE_MASK ? BIT(3) : 0) |
	       (info & SVM_IOIO_STR_MASK ? BIT(4) : 0) | (in.rep ? BIT(5) : 0) |
	       (in.imm ? BIT(6) : 0) | (info & 0xffff0000);
	tdxe_inject_ve(vcpu, R_IO, qual, next - kvm_rip_read(vcpu));
	return 1;
}

/*
 * A touch that the secure or the shared EPT refuses. A TDX module has the guest linear
 * address and the length of the instruction from VMX (Linux refuses the #VE without a
 * kernel GLA), SVM reports neither, so decode the instruction. `ec`: PFERR_* bits.
 * Departs: the GLA of a fetch is where the instruction starts.
 */
void tdxe_ve_ept(struct kvm_vcpu *vcpu, u64 ec, gpa_t gpa)
{
	u64 qual = (ec & PFERR_WRITE_MASK ? 2 : ec & PFERR_FETCH_MASK ? 4 : 1) | BIT(7) | BIT(8);
	struct x86_emulate_ctxt *ctxt = vcpu->arch.emulate_ctxt;
	u64 gla = 0;
	u32 len = 0;
	struct tdxe_insn in;

	if (ec & PFERR_FETCH_MASK) {
		inject(vcpu, R_EPT, qual, gpa, kvm_get_linear_rip(vcpu), 0);
		return;
	}
	tdxe_decode(vcpu, &in);
	if (in.n && x86_decode_emulated_instruction(vcpu, 0, in.b, in.n) == EMULATION_OK) {
		int seg = ctxt->memop.addr.mem.seg;

		len = ctxt->_eip - ctxt->eip;
		gla = ctxt->memop.addr.mem.ea;
		if (!is_64_bit_mode(vcpu))
			gla = (u32)(gla + tdxe_svm.get_segment_base(vcpu, seg));
		else if (seg == VCPU_SREG_FS || seg == VCPU_SREG_GS)
			gla += tdxe_svm.get_segment_base(vcpu, seg);
	}
	inject(vcpu, R_EPT, qual, gpa, gla, len);
}

u64 tdxe_veinfo_get(struct kvm_vcpu *vcpu)
{
	struct tdxe_ve *ve = &to_tv(vcpu)->ve;

	if (!ve->valid) {
		REG(vcpu, RCX) = REG(vcpu, RDX) = REG(vcpu, R8) = 0;
		REG(vcpu, R9) = REG(vcpu, R10) = 0;
		return TDX_E_NO_VE_INFO;
	}
	REG(vcpu, RCX) = ve->reason;
	REG(vcpu, RDX) = ve->qual;
	REG(vcpu, R8) = ve->gla;
	REG(vcpu, R9) = ve->gpa;
	REG(vcpu, R10) = ve->len | (u64)ve->info << 32;
	ve->valid = false;
	return 0;
}
