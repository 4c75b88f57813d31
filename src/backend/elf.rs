//! ELF files before they are given to a loader. The system's loader and the driver believe what a file says of itself: a
//! table outside of the file, or a relocation outside of its memory, ends the process. So each is looked at here first. What
//! the code itself does is another matter: it is run as it is.

use std::collections::HashMap;
use std::ops::Range;

/// The machine of this processor in an ELF header.
const HOST: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
/// That of cubins.
const CUDA: u16 = 190;
/// Most memory that the segments of a shared object span.
const MAX_SPAN: u64 = 1 << 30;
/// To how many bytes the end of what is to be read-only is rounded up: a page, the largest where systems have several.
const PAGE: u64 = if cfg!(target_arch = "x86_64") { 4 << 10 } else { 64 << 10 };
/// Most bytes of thread-local memory.
const MAX_TLS: u64 = 64 << 10;

/// The fixed part of a file: 64 bytes, then tables of program headers of 56 bytes each and of section headers of 64.
struct File<'f> {
    bytes: &'f [u8],
    programs: Vec<Program>,
}

#[derive(Clone, Copy)]
struct Program {
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    file: u64,
    memory: u64,
    align: u64,
}

const EXECUTABLE: u32 = 1;
const WRITABLE: u32 = 2;

fn within(what: &str, at: u64, len: u64, end: usize) -> Result<Range<usize>, String> {
    match at.checked_add(len).filter(|past| *past <= end as u64) {
        Some(past) => Ok(at as usize..past as usize),
        None => Err(format!(
            "{what} at byte {at} with {len} bytes ends outside of its {end} bytes; it is cut off or damaged"
        )),
    }
}

impl<'f> File<'f> {
    fn read(bytes: &'f [u8], machine: u16) -> Result<File<'f>, String> {
        if bytes.len() < 64 || !bytes.starts_with(b"\x7fELF\x02\x01") {
            return Err(format!("its {} bytes are no 64-bit ELF file", bytes.len()));
        }
        let found = u16_at(bytes, 18);
        if found != machine {
            return Err(format!("it is ELF code for machine {found}, and {machine} is needed"));
        }
        let (at, size, count) = (u64_at(bytes, 32), u16_at(bytes, 54), u16_at(bytes, 56));
        if count > 0 && size != 56 {
            return Err(format!("its program headers have {size} bytes each, and 56 is their size"));
        }
        let table = within("the table of program headers", at, u64::from(count) * 56, bytes.len())?;
        let program = |b: &[u8]| Program {
            kind: u32_at(b, 0),
            flags: u32_at(b, 4),
            offset: u64_at(b, 8),
            address: u64_at(b, 16),
            file: u64_at(b, 32),
            memory: u64_at(b, 40),
            align: u64_at(b, 48),
        };
        let programs: Vec<Program> = bytes[table].chunks_exact(56).map(program).collect();
        for p in &programs {
            within("a segment", p.offset, p.file, bytes.len())?;
        }
        let (at, size, count) = (u64_at(bytes, 40), u16_at(bytes, 58), u16_at(bytes, 60));
        if count > 0 && size != 64 {
            return Err(format!("its section headers have {size} bytes each, and 64 is their size"));
        }
        let table = within("the table of section headers", at, u64::from(count) * 64, bytes.len())?;
        const NO_BITS: u32 = 8;
        for s in bytes[table].chunks_exact(64).filter(|s| u32_at(s, 4) != NO_BITS) {
            within("a section", u64_at(s, 24), u64_at(s, 32), bytes.len())?;
        }
        Ok(File { bytes, programs })
    }
}

/// Whether a cubin is whole. What it holds is the driver's to check.
pub(super) fn check_cubin(bytes: &[u8]) -> Result<(), String> {
    let file = File::read(bytes, CUDA)?;
    match u16_at(file.bytes, 60) {
        0 => Err("it has no sections, so no kernels".into()),
        _ => Ok(()),
    }
}

/// A shared object that the system's loader can take, and the functions that it defines.
pub(super) struct SharedObject {
    /// By name, their addresses from where it is loaded.
    functions: HashMap<String, u64>,
}

/// A shared object while it is checked.
struct Checked<'f> {
    file: File<'f>,
    /// Segments that are loaded, by rising address.
    loaded: Vec<Program>,
    dynamic: HashMap<u64, u64>,
    needed: Vec<u64>,
    strings: &'f [u8],
}

impl SharedObject {
    /// Checks a file.
    pub fn read(bytes: &[u8]) -> Result<SharedObject, String> {
        let object = Checked::read(bytes)?;
        let symbols = object.symbols()?;
        let relocated = object.relocations(symbols.len() / SYMBOL)?;
        object.initialisers(&relocated)?;
        object.versions(symbols.len() / SYMBOL)?;
        let mut functions = HashMap::new();
        for s in symbols.chunks_exact(SYMBOL).skip(1) {
            let name = object.string(u32_at(s, 0).into())?;
            let (kind, visibility) = (s[4] & 15, s[5] & 3);
            const NO_TYPE: u8 = 0;
            const FUNCTION: u8 = 2;
            let defined = u16_at(s, 6) != 0 && matches!(kind, FUNCTION | NO_TYPE) && matches!(visibility, 0 | 3);
            if defined && object.is_code(u64_at(s, 8)) {
                functions.insert(name.to_string(), u64_at(s, 8));
            }
        }
        Ok(SharedObject { functions })
    }

    /// The address of a function of its own, from where it is loaded.
    pub fn function(&self, name: &str) -> Option<u64> {
        self.functions.get(name).copied()
    }
}

/// Bytes of a symbol, and of a relocation.
const SYMBOL: usize = 24;

/// Kinds of segments.
mod kind {
    pub const LOAD: u32 = 1;
    pub const DYNAMIC: u32 = 2;
    pub const NOTE: u32 = 4;
    pub const TLS: u32 = 7;
    pub const READ_ONLY_AFTER: u32 = 0x6474_e552;
    pub const PROPERTY: u32 = 0x6474_e553;
}

/// Tags of the dynamic section.
mod tag {
    pub const NEEDED: u64 = 1;
    pub const PLT_SIZE: u64 = 2;
    pub const HASH: u64 = 4;
    pub const STRINGS: u64 = 5;
    pub const SYMBOLS: u64 = 6;
    pub const RELA: u64 = 7;
    pub const RELA_SIZE: u64 = 8;
    pub const RELA_ENTRY: u64 = 9;
    pub const STRINGS_SIZE: u64 = 10;
    pub const SYMBOL_ENTRY: u64 = 11;
    pub const INIT: u64 = 12;
    pub const FINI: u64 = 13;
    pub const SONAME: u64 = 14;
    pub const RPATH: u64 = 15;
    pub const REL: u64 = 17;
    pub const PLT_KIND: u64 = 20;
    pub const TEXT_RELOCATIONS: u64 = 22;
    pub const PLT: u64 = 23;
    pub const INIT_ARRAY: u64 = 25;
    pub const FINI_ARRAY: u64 = 26;
    pub const INIT_ARRAY_SIZE: u64 = 27;
    pub const FINI_ARRAY_SIZE: u64 = 28;
    pub const RUNPATH: u64 = 29;
    pub const RELR_SIZE: u64 = 35;
    pub const RELR: u64 = 36;
    pub const GNU_HASH: u64 = 0x6fff_fef5;
    pub const RELATIVE_COUNT: u64 = 0x6fff_fff9;
    pub const VERSIONS: u64 = 0x6fff_fff0;
    pub const VERSIONS_DEFINED: u64 = 0x6fff_fffc;
    pub const VERSIONS_NEEDED: u64 = 0x6fff_fffe;
    pub const VERSIONS_NEEDED_COUNT: u64 = 0x6fff_ffff;
}

impl<'f> Checked<'f> {
    fn read(bytes: &'f [u8]) -> Result<Checked<'f>, String> {
        let file = File::read(bytes, HOST)?;
        const SHARED: u16 = 3;
        if u16_at(bytes, 16) != SHARED {
            return Err("it is no shared object".into());
        }
        let loaded: Vec<Program> = file.programs.iter().copied().filter(|p| p.kind == kind::LOAD).collect();
        let mut end = 0;
        for p in &loaded {
            let past = p.address.checked_add(p.memory).filter(|past| *past <= MAX_SPAN);
            let sound = p.align.is_power_of_two() && p.align <= MAX_SPAN && p.address % p.align == p.offset % p.align;
            match past {
                Some(past) if sound && p.file <= p.memory && p.address >= end => end = past,
                _ => return Err("its segments overlap, are out of order, or are larger than 1 GiB".into()),
            }
        }
        let mut object =
            Checked { file, loaded, dynamic: HashMap::new(), needed: Vec::new(), strings: Default::default() };
        for p in object.file.programs.clone() {
            match p.kind {
                kind::DYNAMIC => object.dynamic_section(&p)?,
                kind::TLS
                    if p.memory > MAX_TLS || !p.align.is_power_of_two() || p.align > 4096 || p.file > p.memory =>
                {
                    return Err(format!(
                        "it has {} bytes of thread-local memory, and {MAX_TLS} are the most",
                        p.memory
                    ));
                }
                // The loader takes the right to write there away, page by page, after it has relocated.
                kind::READ_ONLY_AFTER if !object.is_in_writable_pages(&p) => {
                    return Err(format!("its memory at {:#x} that is to be read-only is not all its own", p.address));
                }
                kind::TLS | kind::PROPERTY | kind::NOTE => {
                    object.part("a segment of notes", p.address, p.file)?;
                }
                _ => {}
            }
        }
        let strings = object.table("its names", tag::STRINGS, tag::STRINGS_SIZE)?;
        if strings.last() != Some(&0) {
            return Err("its names do not end".into());
        }
        object.strings = strings;
        for tag in [tag::SONAME, tag::RPATH, tag::RUNPATH] {
            object.dynamic.get(&tag).map(|at| object.string(*at)).transpose()?;
        }
        object.needed.iter().try_for_each(|at| object.string(*at).map(drop))?;
        Ok(object)
    }

    fn dynamic_section(&mut self, p: &Program) -> Result<(), String> {
        // The loader writes there.
        if !self.is_writable(p.address, p.file) {
            return Err("its dynamic section is not in writable memory".into());
        }
        let section = self.part("its dynamic section", p.address, p.file)?;
        let entries = section.chunks_exact(16).map(|e| (u64_at(e, 0), u64_at(e, 8)));
        let mut ended = false;
        for (tag, value) in entries {
            match tag {
                0 => {
                    ended = true;
                    break;
                }
                tag::NEEDED => self.needed.push(value),
                _ => drop(self.dynamic.insert(tag, value)),
            }
        }
        match ended && !self.dynamic.contains_key(&tag::REL) && !self.dynamic.contains_key(&tag::TEXT_RELOCATIONS) {
            true => Ok(()),
            false => Err("its dynamic section does not end, or asks for relocations of another kind".into()),
        }
    }

    /// What of the file is loaded at an address.
    fn part(&self, what: &str, address: u64, len: u64) -> Result<&'f [u8], String> {
        let end = address.checked_add(len);
        let holds = |p: &&Program| p.address <= address && end.is_some_and(|end| end <= p.address + p.file);
        let p = self.loaded.iter().find(holds);
        let p = p.ok_or_else(|| format!("{what} at {address:#x} with {len} bytes is in none of its segments"))?;
        let at = (p.offset + (address - p.address)) as usize;
        Ok(&self.file.bytes[at..at + len as usize])
    }

    /// What of the file is loaded from an address to the end of its segment.
    fn rest(&self, what: &str, address: u64) -> Result<&'f [u8], String> {
        let p = self.loaded.iter().find(|p| p.address <= address && address < p.address + p.file);
        let p = p.ok_or_else(|| format!("{what} at {address:#x} is in none of its segments"))?;
        self.part(what, address, p.address + p.file - address)
    }

    fn table(&self, what: &str, at: u64, size: u64) -> Result<&'f [u8], String> {
        match (self.dynamic.get(&at), self.dynamic.get(&size)) {
            (Some(at), Some(size)) => self.part(what, *at, *size),
            (None, None | Some(0)) => Ok(&[]),
            _ => Err(format!("{what} have an address or a size alone")),
        }
    }

    fn string(&self, at: u64) -> Result<&'f str, String> {
        let rest = usize::try_from(at).ok().and_then(|at| self.strings.get(at..));
        let name = rest.and_then(|rest| rest.split(|b| *b == 0).next());
        let name = name.ok_or_else(|| format!("its name at byte {at} is none of its names"))?;
        std::str::from_utf8(name).map_err(|_| format!("its name at byte {at} is no text"))
    }

    fn is_writable(&self, address: u64, len: u64) -> bool {
        let end = address.checked_add(len);
        let inside = |p: &Program| p.address <= address && end.is_some_and(|end| end <= p.address + p.memory);
        self.loaded.iter().any(|p| p.flags & WRITABLE != 0 && inside(p))
    }

    /// Whether a part lies in the pages of a segment that is written.
    fn is_in_writable_pages(&self, part: &Program) -> bool {
        let end = part.address.checked_add(part.memory);
        let inside = |p: &Program| {
            // Not to the file's own word for an alignment, which may be a gigabyte.
            let past = (p.address + p.memory).next_multiple_of(PAGE);
            p.address <= part.address && end.is_some_and(|end| end <= past)
        };
        self.loaded.iter().any(|p| p.flags & WRITABLE != 0 && inside(p))
    }

    fn is_code(&self, address: u64) -> bool {
        let inside = |p: &Program| p.address <= address && address < p.address + p.file;
        self.loaded.iter().any(|p| p.flags & EXECUTABLE != 0 && inside(p))
    }

    /// The table of symbols; the tables of hashes say how many there are.
    fn symbols(&self) -> Result<&'f [u8], String> {
        let count = match (self.dynamic.get(&tag::GNU_HASH), self.dynamic.get(&tag::HASH)) {
            (Some(at), _) => self.gnu_hash(*at)?,
            (None, Some(at)) => self.hash(*at)?,
            (None, None) => return Err("it has no table of hashes".into()),
        };
        let at = self.dynamic.get(&tag::SYMBOLS).ok_or("it has no symbols")?;
        if self.dynamic.get(&tag::SYMBOL_ENTRY) != Some(&(SYMBOL as u64)) {
            return Err(format!("its symbols have another size than {SYMBOL}"));
        }
        let symbols = self.part("its symbols", *at, count * SYMBOL as u64)?;
        // A resolver would run while it is looked up.
        const RESOLVED: u8 = 10;
        match symbols.chunks_exact(SYMBOL).any(|s| s[4] & 15 == RESOLVED) {
            true => Err("a symbol of it is resolved by code".into()),
            false => Ok(symbols),
        }
    }

    /// Checks GNU's table of hashes, and says how many symbols there are.
    fn gnu_hash(&self, at: u64) -> Result<u64, String> {
        let table = self.rest("its table of hashes", at)?;
        let bad = || "its table of hashes is not sound".to_string();
        let word = |i: usize| table.get(i * 4..i * 4 + 4).map(|b| u32_at(b, 0));
        let [Some(buckets), Some(first), Some(words), Some(_)] = [0, 1, 2, 3].map(word) else { return Err(bad()) };
        let (buckets, first, words) = (buckets as usize, first as usize, words as usize);
        // The filter's 64-bit words lie between these four and the buckets.
        let (start, chains) = (4 + words * 2, 4 + words * 2 + buckets);
        if buckets == 0 || !words.is_power_of_two() || chains * 4 > table.len() {
            return Err(bad());
        }
        let mut count = first;
        for i in start..chains {
            let mut symbol = word(i).ok_or_else(bad)? as usize;
            if symbol == 0 {
                continue;
            }
            // Symbols of a bucket follow each other, and so do buckets: each is looked at once.
            if symbol < count {
                return Err(bad());
            }
            while word(chains + (symbol - first)).ok_or_else(bad)? & 1 == 0 {
                symbol += 1;
            }
            count = symbol + 1;
        }
        Ok(count as u64)
    }

    /// Checks the older table of hashes, and says how many symbols there are.
    fn hash(&self, at: u64) -> Result<u64, String> {
        let table = self.rest("its table of hashes", at)?;
        let bad = || "its table of hashes is not sound".to_string();
        let word = |i: usize| table.get(i * 4..i * 4 + 4).map(|b| u32_at(b, 0) as usize).ok_or_else(bad);
        let (buckets, count) = (word(0)?, word(1)?);
        if buckets == 0 || buckets.saturating_add(count) > table.len() / 4 {
            return Err(bad());
        }
        let mut seen = vec![false; count];
        for i in 0..buckets {
            let mut symbol = word(2 + i)?;
            while symbol != 0 {
                match seen.get_mut(symbol) {
                    Some(seen) if !*seen => *seen = true,
                    _ => return Err(bad()),
                }
                symbol = word(2 + buckets + symbol)?;
            }
        }
        Ok(count as u64)
    }

    /// Checks the relocations, and gives the addresses that are written by those relative to where it is loaded, with what
    /// they point to.
    fn relocations(&self, symbols: usize) -> Result<HashMap<u64, u64>, String> {
        let mut relative = HashMap::new();
        if *self.dynamic.get(&tag::RELA_ENTRY).unwrap_or(&(SYMBOL as u64)) != SYMBOL as u64
            || *self.dynamic.get(&tag::PLT_KIND).unwrap_or(&tag::RELA) != tag::RELA
        {
            return Err(format!("its relocations have another size than {SYMBOL}"));
        }
        let tables = [
            self.table("its relocations", tag::RELA, tag::RELA_SIZE)?,
            self.table("its relocations", tag::PLT, tag::PLT_SIZE)?,
        ];
        let [plain, resolved] = if cfg!(target_arch = "x86_64") { [8, 37] } else { [1027, 1032] };
        // So many of the first ones are taken for relative without a look at their kind.
        let first = self.dynamic.get(&tag::RELATIVE_COUNT).copied().unwrap_or_default();
        let of_kind = |r: &[u8]| u32_at(r, 8) == plain;
        if first > (tables[0].len() / SYMBOL) as u64
            || !tables[0].chunks_exact(SYMBOL).take(first as usize).all(of_kind)
        {
            return Err(format!("its first {first} relocations are not all relative"));
        }
        for r in tables.iter().flat_map(|t| t.chunks_exact(SYMBOL)) {
            let (at, kind, symbol) = (u64_at(r, 0), u32_at(r, 8), u32_at(r, 12) as usize);
            if !self.is_writable(at, 16) && !self.is_writable(at, 8) {
                return Err(format!("it relocates {at:#x}, which is none of its writable memory"));
            }
            if kind == resolved || symbol >= symbols.max(1) {
                return Err(format!(
                    "its relocation of {at:#x} asks for code to be run, or for a symbol that is not there"
                ));
            }
            if kind == plain {
                relative.insert(at, u64_at(r, 16));
            }
        }
        self.packed(&mut relative)?;
        Ok(relative)
    }

    /// The same for packed relocations, all relative: an address, or a set of the 63 words after the last one.
    fn packed(&self, relative: &mut HashMap<u64, u64>) -> Result<(), String> {
        let table = self.table("its packed relocations", tag::RELR, tag::RELR_SIZE)?;
        let mut next = 0u64;
        let mut one = |at: u64| match self.part("a relocated word", at, 8) {
            Ok(word) if self.is_writable(at, 8) => {
                relative.insert(at, u64_at(word, 0));
                Ok(())
            }
            _ => Err(format!("it relocates {at:#x}, which is none of its writable memory")),
        };
        for entry in table.chunks_exact(8).map(|e| u64_at(e, 0)) {
            if entry & 1 == 0 {
                one(entry)?;
                next = entry.wrapping_add(8);
                continue;
            }
            for bit in (0..63).filter(|bit| entry >> (bit + 1) & 1 == 1) {
                one(next.wrapping_add(bit * 8))?;
            }
            next = next.wrapping_add(63 * 8);
        }
        Ok(())
    }

    /// What is run when it is loaded and unloaded must be its own code.
    fn initialisers(&self, relocated: &HashMap<u64, u64>) -> Result<(), String> {
        let outside = |what: &str| Err(format!("its {what} is none of its code"));
        for (what, at) in [("initialiser", tag::INIT), ("finaliser", tag::FINI)] {
            if self.dynamic.get(&at).is_some_and(|at| !self.is_code(*at)) {
                return outside(what);
            }
        }
        for (what, at, size) in [
            ("initialiser", tag::INIT_ARRAY, tag::INIT_ARRAY_SIZE),
            ("finaliser", tag::FINI_ARRAY, tag::FINI_ARRAY_SIZE),
        ] {
            let list = self.table("its initialisers", at, size)?;
            let at = self.dynamic.get(&at).copied().unwrap_or_default();
            let own = |i: usize| relocated.get(&(at + i as u64 * 8)).is_some_and(|to| self.is_code(*to));
            if !(0..list.len() / 8).all(own) {
                return outside(what);
            }
        }
        Ok(())
    }

    /// Checks the versions of symbols: lists whose parts say how far the next one is.
    fn versions(&self, symbols: usize) -> Result<(), String> {
        let bad = || "its versions of symbols are not sound".to_string();
        if self.dynamic.contains_key(&tag::VERSIONS_DEFINED) {
            return Err("it defines versions of symbols".into());
        }
        let Some(of_symbols) = self.dynamic.get(&tag::VERSIONS) else { return Ok(()) };
        let of_symbols = self.part("its versions of symbols", *of_symbols, symbols as u64 * 2)?;
        // 0 and 1 are its own.
        let mut most = 1;
        let needed = self.dynamic.get(&tag::VERSIONS_NEEDED);
        let mut at = needed.copied().unwrap_or_default();
        let count = self.dynamic.get(&tag::VERSIONS_NEEDED_COUNT).copied().unwrap_or_default();
        if needed.is_some() && (count == 0 || count > 64) {
            return Err(bad());
        }
        for left in (0..if needed.is_some() { count } else { 0 }).rev() {
            let library = self.part("a needed version", at, 16)?;
            self.string(u32_at(library, 4).into())?;
            let mut entry = at + u64::from(u32_at(library, 8));
            for left in (0..u16_at(library, 2)).rev() {
                let version = self.part("a needed version", entry, 16)?;
                self.string(u32_at(version, 8).into())?;
                most = most.max(u16_at(version, 6) & 0x7fff);
                let next = u32_at(version, 12);
                if (next == 0) != (left == 0) {
                    return Err(bad());
                }
                entry += u64::from(next);
            }
            let next = u32_at(library, 12);
            if (next == 0) != (left == 0) || u16_at(library, 2) == 0 {
                return Err(bad());
            }
            at += u64::from(next);
        }
        match of_symbols.chunks_exact(2).all(|v| u16_at(v, 0) & 0x7fff <= most) {
            true => Ok(()),
            false => Err(bad()),
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes[at..].first_chunk().map_or(0, |b| u16::from_le_bytes(*b))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use std::process::Command;

    /// A shared object with all that a template's code may have: calls of two libraries, data, an initialiser.
    fn compiled() -> Vec<u8> {
        linked(&[])
    }

    fn linked(options: &[&str]) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let (code, object) = (folder.path().join("k.c"), folder.path().join("k.so"));
        let text = "#include <math.h>\n#include <stdlib.h>\n
            static double table[4] = {1, 2, 3, 4};
            double *pointer = table + 1;
            static _Thread_local long counter;
            static int hidden(void) { return 3; }
            __attribute__((constructor)) static void first(void) { counter = hidden(); }
            void entry(const double *args, long task, long tasks) {
                pointer[task] = sin(args[0]) + counter + (tasks > 100000 ? system(\"true\") : 0);
            }
            ";
        std::fs::write(&code, text).unwrap();
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-shared", "-fPIC"]).args(options).arg(&code).arg("-o").arg(&object).arg("-lm");
        assert!(cc.status().unwrap().success());
        std::fs::read(object).unwrap()
    }

    #[test]
    fn what_a_compiler_makes_is_taken_and_nothing_cut_off_is() {
        let bytes = compiled();
        let object = SharedObject::read(&bytes).unwrap();
        assert!(object.function("entry").is_some());
        // Of another library, of no library, data, and a function that it keeps to itself.
        for name in ["system", "sin", "nothing", "pointer", "hidden", ""] {
            assert!(object.function(name).is_none(), "{name}");
        }
        for len in (0..bytes.len()).rev().step_by(7) {
            let why = SharedObject::read(&bytes[..len]).err().unwrap_or_else(|| panic!("{len} bytes are taken"));
            assert!(!why.is_empty());
        }
    }

    /// What the loader takes for granted: it would make other memory read-only, or end the process.
    #[test]
    fn what_the_loader_believes_is_looked_at() {
        // Segments that are aligned to more than a page have no more room behind them.
        [&[][..], &["-Wl,-z,max-page-size=0x200000"]].iter().for_each(|options| looked_at(&linked(options)));
    }

    fn looked_at(bytes: &[u8]) {
        let headers = u64_at(bytes, 32) as usize;
        let of_kind =
            |kind| (0..usize::from(u16_at(bytes, 56))).map(|i| headers + i * 56).find(|at| u32_at(bytes, *at) == kind);
        let put = |at: usize, value: u64| {
            let mut bad = bytes.to_vec();
            bad[at..at + 8].copy_from_slice(&value.to_le_bytes());
            SharedObject::read(&bad).err().unwrap_or_default()
        };
        let read_only = of_kind(kind::READ_ONLY_AFTER).unwrap();
        let memory = u64_at(bytes, read_only + 40);
        for more in [memory + 0x2000, memory + (1 << 20), u64::MAX] {
            assert!(put(read_only + 40, more).contains("read-only"), "{more:#x}");
        }
        assert!(put(read_only + 16, 0).contains("read-only"));
        let dynamic = u64_at(bytes, of_kind(kind::DYNAMIC).unwrap() + 8) as usize;
        let entry = (0..).map(|i| dynamic + i * 16).find(|at| u64_at(bytes, *at) == tag::RELATIVE_COUNT).unwrap();
        let first = u64_at(bytes, entry + 8);
        assert!(first > 0 && put(entry + 8, first - 1).is_empty());
        for count in [first + 1, first + 1000, u64::MAX] {
            assert!(put(entry + 8, count).contains("not all relative"), "{count}");
        }
    }

    #[test]
    fn no_damage_leads_outside_of_the_file() {
        let bytes = compiled();
        let mut state = 1u64;
        let mut below = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        for _ in 0..30_000 {
            let mut bad = bytes.clone();
            for _ in 0..1 + below(3) {
                // Headers and tables, which are at both ends and before the code.
                let at = if below(2) == 0 { below(64 + 56 * 12) } else { below(bad.len()) };
                let wide = [0, 1, 0x7fff_ffff, u64::MAX, u64::MAX - 8, 1 << 40, below(1 << 16) as u64][below(7)];
                match below(3) {
                    0 => bad[at] ^= 1 << below(8),
                    1 => bad[at] = below(256) as u8,
                    _ if at + 8 <= bad.len() => bad[at..at + 8].copy_from_slice(&wide.to_le_bytes()),
                    _ => {}
                }
            }
            let _ = SharedObject::read(&bad);
        }
    }

    #[test]
    fn a_cubin_is_whole_or_refused() {
        for bytes in [&b""[..], b"\x7fELF", b".version 8.0\n.target sm_80\n", &[0x7f; 64]] {
            assert!(check_cubin(bytes).is_err());
        }
        // A shared object of this machine's is none, whatever its tables are; with the machine of a cubin it would be.
        let mut bytes = compiled();
        assert!(check_cubin(&bytes).unwrap_err().contains("machine"));
        bytes[18..20].copy_from_slice(&CUDA.to_le_bytes());
        check_cubin(&bytes).unwrap();
        for len in (0..bytes.len()).rev().step_by(97) {
            assert!(check_cubin(&bytes[..len]).is_err(), "{len} bytes are taken");
        }
    }
}
