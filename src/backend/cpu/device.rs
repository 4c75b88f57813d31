//! What processor is here.

use super::tiles;
use crate::device::{Device, Target};
use std::collections::BTreeMap;

/// Describes the host's processor with `threads` threads for the pool, or as many as the process may use.
pub fn describe(threads: Option<usize>) -> Device {
    let available = std::thread::available_parallelism().map_or(1, |n| n.get());
    let units = u32::try_from(threads.unwrap_or(available).max(1)).unwrap_or(u32::MAX);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|l| l.split(':').next().is_some_and(|k| k.trim() == name));
        line.and_then(|l| l.split_once(':')).map(|(_, v)| v.trim().to_string())
    };
    let (isa, simd) = vector_isa();
    let cache = |level: u32, kind: &str| cache_bytes(level, kind).unwrap_or(0);
    let (l1, l2, l3) = (cache(1, "Data"), cache(2, "Unified"), cache(3, "Unified"));
    let name = field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_string());
    let mut flags = instruction_flags(&info);
    if !tiles::allowed() {
        // What the system does not let us use is not there.
        flags = flags.split(' ').filter(|f| !f.starts_with("amx_")).collect::<Vec<_>>().join(" ");
    }
    let memory = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|t| t.lines().next()?.split_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or(0)
        << 10;
    let silicon = BTreeMap::from([
        ("isa".to_string(), format!("{}-{isa}", std::env::consts::ARCH)),
        ("vendor".to_string(), field("vendor_id").or_else(|| field("CPU implementer")).unwrap_or_default()),
        ("family".to_string(), field("cpu family").or_else(|| field("CPU part")).unwrap_or_default()),
        ("model".to_string(), field("model").unwrap_or_default()),
        ("stepping".to_string(), field("stepping").or_else(|| field("CPU variant")).unwrap_or_default()),
        // Of two of one model a hypervisor may hide instructions from one.
        ("flags".to_string(), blake3::hash(flags.as_bytes()).to_hex()[..16].to_string()),
        ("threads".to_string(), units.to_string()),
        ("l1_bytes".to_string(), l1.to_string()),
        ("l2_bytes".to_string(), l2.to_string()),
        ("l3_bytes".to_string(), l3.to_string()),
    ]);
    // Stand-ins until a session measures: two multiply-adds of a vector a cycle at 3 GHz, 10 GB/s a core.
    let peak = f64::from(units) * 3e9 * 2.0 * 2.0 * (simd / 4) as f64;
    let read = f64::from(units) * 1e10;
    let mut device = Device {
        target: Target::Cpu,
        name,
        arch: format!("{}-{isa}", std::env::consts::ARCH),
        cc: 0,
        units,
        smem: 0,
        smem_sm: 0,
        regs_sm: 0,
        l1,
        l2,
        l3,
        isa: isa.into(),
        flags,
        simd,
        memory,
        silicon,
        ceilings: tiles::ceilings(read, read, peak, 0.0, false),
    };
    if device.has_tiles() {
        // A product of two tiles is 16 cycles for 16 x 16 x 32 multiply-adds.
        device.ceilings = tiles::ceilings(read, read, peak, f64::from(units) * 3e9 * 1024.0, false);
    }
    device
}

/// The flags of `/proc/cpuinfo` that name instructions, sorted, with spaces between. The other flags of an x86 say how the
/// kernel was set up and what the processor suffers from; they change with the kernel and no code depends on them.
fn instruction_flags(cpuinfo: &str) -> String {
    const FAMILIES: [&str; 6] = ["amx_", "apx", "avx", "sse", "ssse3", "xsave"];
    const OTHERS: &str = "3dnow 3dnowext 3dnowprefetch abm adx aes aeskle bmi1 bmi2 cldemote clflush clflushopt clwb clzero \
        cmov cmpccxadd cx16 cx8 enqcmd enqcmds f16c fma fma4 fpu fsgsbase fxsr gfni hle hreset invpcid kl lahf_lm lwp mmx \
        mmxext monitor movbe movdir64b movdiri movrs mwaitx ospke pclmulqdq pconfig pku pni popcnt prefetchi prefetchwt1 \
        ptwrite raoint rdpid rdpru rdrand rdseed rdtscp rtm serialize sha512 sha_ni sm3 sm4 tbm tsxldtrk uintr user_msr \
        vaes vpclmulqdq waitpkg wbnoinvd widekl xop";
    let line = cpuinfo.lines().find_map(|l| {
        let (name, value) = l.split_once(':')?;
        match name.trim() {
            "flags" => Some((true, value)),
            "Features" => Some((false, value)),
            _ => None,
        }
    });
    let Some((x86, list)) = line else { return String::new() };
    let names = |flag: &str| match x86 {
        true => FAMILIES.iter().any(|f| flag.starts_with(f)) || OTHERS.split_whitespace().any(|o| o == flag),
        false => !matches!(flag, "cpuid" | "evtstrm"),
    };
    let mut flags: Vec<&str> = list.split_whitespace().filter(|f| names(f)).collect();
    flags.sort_unstable();
    flags.dedup();
    flags.join(" ")
}

fn vector_isa() -> (&'static str, u64) {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            return ("avx512", 64);
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            return ("avx2", 32);
        }
    }
    if cfg!(target_arch = "aarch64") { ("neon", 16) } else { ("scalar", 16) }
}

fn cache_bytes(level: u32, kind: &str) -> Option<u64> {
    for index in 0..8 {
        let read = |file: &str| {
            let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{file}");
            std::fs::read_to_string(path).ok().map(|t| t.trim().to_string())
        };
        if read("level")? == level.to_string() && read("type")? == kind {
            return read("size")?.strip_suffix('K')?.parse::<u64>().ok().map(|k| k << 10);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_those_that_name_instructions() {
        let x86 = "processor\t: 0\nflags\t\t: fpu sse2 hypervisor avx2 pti avx512_bf16 amx_tile sse2 constant_tsc bmi1\n\
            bugs\t\t: spectre_v1\nprocessor\t: 1\nflags\t\t: fpu\n";
        assert_eq!(instruction_flags(x86), "amx_tile avx2 avx512_bf16 bmi1 fpu sse2");
        assert_eq!(instruction_flags("Features\t: fp asimd evtstrm sve\n"), "asimd fp sve");
        assert_eq!(instruction_flags(""), "");
    }

    #[test]
    fn the_silicon_holds_their_hash_and_the_device_themselves() {
        let device = describe(Some(2));
        assert!(!device.flags.is_empty() && device.silicon["flags"].len() == 16);
        assert!(device.flags.split(' ').is_sorted(), "{}", device.flags);
    }

    #[test]
    fn a_number_of_threads_is_never_cut() {
        assert_eq!(describe(Some(usize::MAX)).units, u32::MAX);
    }
}
