//! The instruction mix of a cubin, by a disassembler where there is one.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// Opcodes by what they do, by their first letters; the first that fits counts.
const CLASSES: [(&str, &[&str]); 12] = [
    ("matrix (wgmma)", &["HGMMA", "QGMMA", "IGMMA"]),
    ("matrix (mma)", &["HMMA", "IMMA", "DMMA"]),
    ("bulk copies", &["UTMA", "UBLKCP"]),
    ("global loads", &["LDG", "LD.", "LDGSTS"]),
    ("global stores", &["STG", "ST.", "RED", "ATOM"]),
    ("shared memory", &["LDS", "STS", "LDSM", "STSM"]),
    ("local memory", &["LDL", "STL"]),
    ("f32 arithmetic", &["FFMA", "FADD", "FMUL", "FMNMX", "FSETP"]),
    ("special functions", &["MUFU"]),
    ("conversions", &["F2F", "F2I", "I2F", "HADD", "F2FP"]),
    ("barriers", &["BAR", "SYNCS", "WARPSYNC", "DEPBAR", "WARPGROUP"]),
    (
        "integer and addresses",
        &["IMAD", "IADD", "LEA", "SHF", "LOP", "ISETP", "PRMT", "VIADD", "UIADD", "UIMAD", "ULEA", "VIMNMX"],
    ),
];

/// How many instructions of each class the code has, and of all; none without a disassembler.
pub fn mix(cubin: &Path) -> Option<BTreeMap<String, u64>> {
    let text = disassemble(cubin)?;
    let mut mix = BTreeMap::new();
    for opcode in text.lines().filter_map(opcode) {
        let class = CLASSES.iter().find(|(_, starts)| starts.iter().any(|s| opcode.starts_with(s)));
        *mix.entry(class.map_or("other", |(name, _)| name).to_string()).or_insert(0) += 1;
        *mix.entry("all".to_string()).or_insert(0) += 1;
    }
    (!mix.is_empty()).then_some(mix)
}

fn disassemble(cubin: &Path) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = || std::env::split_paths(&path).chain(["/usr/local/cuda/bin".into()]);
    let found = |name: &str| folders().map(|f| f.join(name)).find(|p| p.is_file());
    let mut command = match (found("nvdisasm"), found("cuobjdump")) {
        (Some(nvdisasm), _) => Command::new(nvdisasm),
        (None, Some(cuobjdump)) => {
            let mut command = Command::new(cuobjdump);
            command.arg("-sass");
            command
        }
        (None, None) => return None,
    };
    let out = command.arg(cubin).output().ok().filter(|o| o.status.success())?;
    Some(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The opcode of a line such as `/*0010*/  @!P0 IMAD.MOV R1, … ;`.
fn opcode(line: &str) -> Option<&str> {
    let after = line.trim_start().strip_prefix("/*")?.split_once("*/")?.1.trim_start();
    let after = match after.strip_prefix('@') {
        Some(guarded) => guarded.split_once(' ')?.1.trim_start(),
        None => after,
    };
    let word = after.split([' ', ';']).next()?;
    word.starts_with(|c: char| c.is_ascii_uppercase()).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcodes_are_found_behind_addresses_and_guards() {
        assert_eq!(
            opcode("        /*0010*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;"),
            Some("IMAD.MOV.U32")
        );
        assert_eq!(opcode("        /*0a20*/              @!P0 BRA `(.L_x_1) ;"), Some("BRA"));
        assert_eq!(opcode("        /*0a30*/                   EXIT ;"), Some("EXIT"));
        assert_eq!(opcode(".L_x_1:"), None);
        assert_eq!(opcode("                                   /* 0x000fe200078e00ff */"), None);
    }
}
