//! Weights that a folder has quantised: which tensors belong to one, and what they hold.

use super::names::{Natural, Rows};
use super::quant::{Awq, Compressed, Gptq, Packed, QuantError, Zeros};
use super::{Checkpoint, Format, Weights, WeightsError};
use crate::model::{QuantLayout, Quantization, WeightFormat};
use crate::problem::{Granularity, ScaledFormat, Storage, Zero};

/// The tensors of one weight in files, by what follows the name of its module: those that are needed, and those that may be there.
pub(super) fn parts(quantization: &Quantization) -> (&'static [&'static str], &'static [&'static str]) {
    let codes = quantization.scaled().map(|f| f.codes);
    match quantization.layout {
        QuantLayout::Gptq | QuantLayout::GptqV2 => (&["qweight", "qzeros", "scales"], &["g_idx"]),
        QuantLayout::Awq => (&["qweight", "qzeros", "scales"], &[]),
        QuantLayout::CompressedTensors if codes == Some(Storage::Int4) => {
            (&["weight_packed", "weight_scale"], &["weight_shape", "weight_zero_point"])
        }
        QuantLayout::CompressedTensors => (&["weight", "weight_scale"], &["weight_zero_point"]),
    }
}

impl Checkpoint {
    /// Whether the tensors of a quantised weight are of the shape that the model says; `parts` tells which must be there.
    pub(super) fn check_shape(&self, module: &str, q: &Quantization, n: &Natural) -> Result<(), WeightsError> {
        let &[rows, columns] = &n.shape[..] else { return Ok(()) };
        self.check_kinds(module, q)?;
        let ((needed, _), words) = (parts(q), 8);
        let name = format!("{module}.{}", needed[0]);
        let wanted = match (q.layout, q.scaled().map(|f| f.codes)) {
            (QuantLayout::Gptq | QuantLayout::GptqV2, _) => vec![columns / words, rows],
            (QuantLayout::Awq, _) => vec![columns, rows / words],
            (_, Some(Storage::Int4)) => vec![rows, columns.div_ceil(words)],
            _ => vec![rows, columns],
        };
        match self.raw(&name) {
            Some((found, _)) if *found != *wanted => Err(WeightsError::Shape { name, found: found.to_vec(), wanted }),
            _ => Ok(()),
        }
    }
}

impl Checkpoint {
    /// Whether the tensors of a quantised weight are of the types that its layout has: bytes of another one would be read as what they are not.
    fn check_kinds(&self, module: &str, q: &Quantization) -> Result<(), WeightsError> {
        let (needed, optional) = parts(q);
        let codes = match q.scaled().map(|f| f.codes) {
            Some(Storage::Int8) => "I8",
            Some(Storage::E4m3) => "F8_E4M3",
            _ => "I32",
        };
        for part in needed.iter().chain(optional) {
            let name = format!("{module}.{part}");
            let (right, wanted) = match (*part, self.kind(&name)) {
                (_, None) | ("weight_shape", _) => continue,
                ("scales" | "weight_scale", Some(kind)) => (matches!(kind, Ok(Format::Plain(_))), "F32, F16 or BF16"),
                ("weight" | "weight_zero_point", Some(kind)) => (kind == Err(codes), codes),
                (_, Some(kind)) => (kind == Err("I32"), "I32"),
            };
            if !right {
                let why = format!("{name} is of another type than this layout has there, which is {wanted}");
                return Err(WeightsError::Quantised { why });
            }
        }
        Ok(())
    }
}

impl Weights {
    /// The module of a tensor that the folder has quantised.
    pub(super) fn module<'n>(&self, name: &'n str) -> Option<(&'n str, &Quantization)> {
        let q = self.model.quantization.as_ref()?;
        q.module(name).map(|module| (module, q))
    }

    /// The format of a tensor of the model as the checkpoint has it.
    pub(super) fn format(&self, name: &str) -> Option<WeightFormat> {
        if let Some((module, q)) = self.module(name) {
            let scales = parts(q).0.last().map(|part| format!("{module}.{part}"))?;
            let Format::Plain(scale) = self.checkpoint.get(&scales).ok()?.format else { return None };
            return Some(WeightFormat { format: q.scaled()?, scale });
        }
        let (format, scale) = super::quant::ggml_format(self.checkpoint.get(name).ok()?.format)?;
        Some(WeightFormat { format, scale })
    }

    /// What a weight that the folder has quantised holds, in the format that the folder names.
    pub(super) fn quantised(&self, n: &Natural) -> Result<Option<Packed>, WeightsError> {
        let Some((module, q)) = self.module(&n.name) else { return Ok(None) };
        let (&[rows, columns], Some(format)) = (&n.shape[..], q.scaled()) else { return Ok(None) };
        let raw = |part: &str| self.checkpoint.raw(&format!("{module}.{part}")).map(|(_, bytes)| bytes);
        let needed =
            |part: &str| raw(part).ok_or_else(|| WeightsError::Missing { names: vec![format!("{module}.{part}")] });
        let group = format.per.run(columns as i64).unsigned_abs();
        let unpacked = match q.layout {
            QuantLayout::Gptq | QuantLayout::GptqV2 => Gptq {
                name: module,
                n: rows,
                k: columns,
                group,
                qweight: needed("qweight")?,
                qzeros: needed("qzeros")?,
                scales: needed("scales")?,
                g_idx: raw("g_idx"),
                zeros: if q.layout == QuantLayout::Gptq { Zeros::LessOne } else { Zeros::Plain },
            }
            .unpack(),
            QuantLayout::Awq => {
                let tensors = Awq { qweight: needed("qweight")?, qzeros: needed("qzeros")?, scales: needed("scales")? };
                tensors.unpack(module, [rows, columns], group)
            }
            QuantLayout::CompressedTensors => Compressed {
                name: module,
                n: rows,
                k: columns,
                codes: format.codes,
                per: format.per,
                weight: needed(parts(q).0[0])?,
                scale: self.format(&n.name).map_or(Storage::F32, |f| f.scale),
                weight_scale: needed("weight_scale")?,
                weight_zero_point: raw("weight_zero_point"),
            }
            .unpack(),
        };
        let named = |e: QuantError| WeightsError::Quantised { why: e.to_string() };
        let packed = unpacked.map_err(named)?.widened(format);
        match packed.format == format {
            true => Ok(Some(packed)),
            false => {
                let why = format!("{module} is {}, and quantization_config says {format}", packed.format);
                Err(WeightsError::Quantised { why })
            }
        }
    }

    /// The format of a weight of programs that is made of these: theirs, where all have one and its scales go where rows go.
    pub(super) fn format_of(&self, rows: &Rows) -> Option<WeightFormat> {
        let first = self.format(&rows.of.first()?.name)?;
        let alike = rows.of.iter().all(|n| self.format(&n.name) == Some(first));
        let per = match first.format.per {
            per if rows.of.len() == 1 && rows.in_order() => per,
            Granularity::Tensor => Granularity::Row,
            Granularity::Block => return None,
            per => per,
        };
        alike.then_some(WeightFormat { format: ScaledFormat { per, ..first.format }, ..first })
    }
}

impl Packed {
    /// The same with a scale for each row where there was one for all, and with zero points where the wider format has them.
    fn widened(self, to: ScaledFormat) -> Packed {
        let (from, scales) = (self.format, self.scales.len() as u64 * 8 / self.scale.bits());
        match (from.zero, to.zero) {
            (Zero::None, Zero::Zero) if from.codes == Storage::Int4 => Packed {
                zeros: vec![from.bias(); scales as usize],
                format: ScaledFormat { zero: Zero::Zero, ..from },
                ..self
            },
            _ => self,
        }
    }

    /// Rows of the same format and columns behind these; of 4-bit codes a row is whole bytes.
    pub(super) fn append(&mut self, below: Packed) {
        self.n += below.n;
        self.codes.extend(below.codes);
        self.scales.extend(below.scales);
        self.zeros.extend(below.zeros);
    }

    /// The rows of several weights in another order: the weight and its row that each is.
    pub(super) fn of_rows(parts: &[Packed], n: u64, row: impl Fn(u64) -> (usize, u64)) -> Option<Packed> {
        let first = parts.first()?;
        let per = if first.format.per == Granularity::Tensor { Granularity::Row } else { first.format.per };
        let bytes = |list: &[u8], of: &Packed| list.len() / of.n as usize;
        let (mut codes, mut scales, mut zeros) = (Vec::new(), Vec::new(), Vec::new());
        for at in 0..n {
            let (of, from) = row(at);
            let (of, from) = (parts.get(of)?, from as usize);
            let part = |list: &'_ [u8], each: usize| list.get(from * each..(from + 1) * each).map(<[u8]>::to_vec);
            codes.extend(part(&of.codes, bytes(&of.codes, of))?);
            match first.format.per {
                Granularity::Tensor => scales.extend(&of.scales),
                _ => scales.extend(part(&of.scales, bytes(&of.scales, of))?),
            }
            zeros.extend(part(&of.zeros, bytes(&of.zeros, of))?);
        }
        let format = ScaledFormat { per, ..first.format };
        Some(Packed { format, scale: first.scale, n, k: first.k, codes, scales, zeros })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Target;
    use crate::model::{Buckets, LINEAR, Model, Pass, Precision, SCALES, ZEROS};
    use crate::problem::{CodeLayout, Dtype};
    use crate::program::{Life, Program};
    use crate::weights::names::natural;
    use crate::weights::pack::{Quantization as Packing, compressed};
    use crate::weights::quant::{GptqTensors, Method, quantize};
    use crate::weights::tests::{as_gguf, filled, folder, tiny};
    use safetensors::tensor::{Dtype as Kind, TensorView};
    use serde_json::json;
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::Path;

    fn model() -> Model {
        Model { hidden: 128, intermediate: 192, head_dim: 32, ..tiny("qwen3") }
    }

    /// Rows of a tensor as values.
    fn values(weights: &Weights, n: &Natural) -> Vec<f32> {
        let held = weights.held(n).unwrap();
        let row = |at| {
            let mut bytes = vec![0; held_columns(n) * 4];
            held.row(at).put(Storage::F32, &mut bytes).unwrap();
            bytes
        };
        (0..n.shape[0]).flat_map(row).collect::<Vec<_>>().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    fn held_columns(n: &Natural) -> usize {
        n.shape.get(1).copied().unwrap_or(1) as usize
    }

    /// A folder of the same model whose linear layers are in GPTQ's or AWQ's tensors.
    fn requantised(stored: &Path, layout: QuantLayout, name: &str) -> tempfile::TempDir {
        let (model, _) = Model::load(stored.to_str().unwrap()).unwrap();
        let weights = Weights::open(stored, &model).unwrap().0;
        let format = ScaledFormat::parse(name).unwrap();
        let mut config = model.config(Dtype::F32).unwrap();
        config["quantization_config"] = match layout {
            QuantLayout::Awq => json!({ "quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": true }),
            _ => json!({
                "quant_method": "gptq", "bits": 4, "group_size": 32, "sym": format.zero == Zero::None,
                "checkpoint_format": if layout == QuantLayout::Gptq { "gptq" } else { "gptq_v2" },
            }),
        };
        let mut tensors: Vec<(String, Kind, Vec<usize>, Vec<u8>)> = Vec::new();
        for n in natural(&model) {
            let shape: Vec<usize> = n.shape.iter().map(|d| *d as usize).collect();
            let Some(module) = n.name.strip_suffix(".weight").filter(|m| m.ends_with("_proj")) else {
                let bytes = values(&weights, &n).iter().flat_map(|v| v.to_le_bytes()).collect();
                tensors.push((n.name.clone(), Kind::F32, shape, bytes));
                continue;
            };
            let (rows, columns) = (n.shape[0], n.shape[1]);
            let mut p =
                quantize(module, &values(&weights, &n), [rows, columns], (format, Storage::F16), Method::AbsMax)
                    .unwrap();
            // Zero points of 0 are none where each is stored less one.
            p.zeros.iter_mut().for_each(|z| *z = (*z).max(1));
            let (qweight, qzeros, scales) = match layout {
                QuantLayout::Awq => {
                    let t = Awq::pack(module, &p).unwrap();
                    (t.qweight, t.qzeros, t.scales)
                }
                _ => {
                    let zeros = if layout == QuantLayout::Gptq { Zeros::LessOne } else { Zeros::Plain };
                    let t = GptqTensors::pack(module, &p, zeros).unwrap();
                    (t.qweight, t.qzeros, t.scales)
                }
            };
            let (rows, columns) = (rows as usize, columns as usize);
            let words = if layout == QuantLayout::Awq { vec![columns, rows / 8] } else { vec![columns / 8, rows] };
            tensors.push((format!("{module}.qweight"), Kind::I32, words, qweight));
            tensors.push((format!("{module}.qzeros"), Kind::I32, vec![columns / 32, rows / 8], qzeros));
            tensors.push((format!("{module}.scales"), Kind::F16, vec![columns / 32, rows], scales));
        }
        let place = tempfile::tempdir().unwrap();
        let view = |(name, kind, shape, bytes): &(String, Kind, Vec<usize>, Vec<u8>)| {
            (name.clone(), TensorView::new(*kind, shape.clone(), bytes).unwrap().data().to_vec(), *kind, shape.clone())
        };
        let owned: Vec<_> = tensors.iter().map(view).collect();
        let views: BTreeMap<String, TensorView<'_>> =
            owned.iter().map(|(n, b, k, s)| (n.clone(), TensorView::new(*k, s.clone(), b).unwrap())).collect();
        safetensors::serialize_to_file(views, None, &place.path().join("model.safetensors")).unwrap();
        fs::write(place.path().join("config.json"), config.to_string()).unwrap();
        place
    }

    fn program(model: &Model, precision: &Precision) -> Program {
        let buckets = Buckets { batch: vec![1], prefill: vec![], chunk: vec![], context: 64, page: 8 };
        let program = Pass::all(model, &buckets, precision).unwrap().remove(0).program;
        program.check().unwrap();
        program
    }

    /// Holds what programs are filled with in the checkpoint's own precision against its values: row by row the same.
    fn same_values(path: &Path, target: Target, wanted: &str) {
        let (model, _) = Model::load(path.to_str().unwrap()).unwrap();
        let weights = Weights::open(path, &model).unwrap().0;
        weights.check().unwrap();
        let (precision, notes) = weights.precision(Dtype::F32, target);
        assert_eq!(notes, [""; 0]);
        let (codes, plain) =
            (filled(&weights, &model, &precision).unwrap(), filled(&weights, &model, Dtype::F32).unwrap());
        for t in program(&model, &Dtype::F32.into()).tensors.iter().filter(|t| t.life == Life::Weight) {
            let Some(WeightFormat { format, scale }) = precision.format(&t.name) else {
                assert!(!LINEAR.iter().any(|part| t.name.ends_with(&format!(".{part}"))), "{}", t.name);
                assert_eq!(codes[&t.name], plain[&t.name], "{}", t.name);
                continue;
            };
            assert_eq!(format.to_string(), wanted, "{}", t.name);
            let of = |end: &str| codes.get(&format!("{}{end}", t.name)).cloned().unwrap_or_default();
            let mut packed = Packed {
                format,
                scale,
                n: t.shape[0],
                k: t.shape[1],
                codes: of(""),
                scales: of(SCALES),
                zeros: of(ZEROS),
            };
            let natural = packed.clone();
            let types = precision.types(&t.name, [packed.n as i64, packed.k as i64]);
            let layout = types.scaling.unwrap().layout;
            packed.codes = packed.codes_of(layout, &packed.codes);
            if layout == CodeLayout::Lanes {
                // The scale of each row and run from where the layout has it.
                let runs = packed.k.div_ceil(format.per.run(packed.k as i64) as u64);
                let ordered = |list: &[u8]| {
                    let each = list.len() / (packed.n * runs) as usize;
                    let of = |at: u64| layout.scale_place(at / runs, at % runs, runs) as usize * each;
                    (0..packed.n * runs).flat_map(|at| list[of(at)..of(at) + each].to_vec()).collect::<Vec<u8>>()
                };
                (packed.scales, packed.zeros) = (ordered(&natural.scales), ordered(&natural.zeros));
            }
            for i in 0..packed.n * packed.k {
                let value = Storage::F32.value(&plain[&t.name], i) as f32;
                assert_eq!(packed.value(i / packed.k, i % packed.k), value, "{} {i}", t.name);
            }
        }
    }

    #[test]
    fn quantised_folders_are_taken_as_they_are() {
        let stored = folder(&model(), Dtype::F32, u64::MAX);
        let source = Weights::open(stored.path(), &Model::load(stored.path().to_str().unwrap()).unwrap().0).unwrap().0;
        for target in [Target::Cpu, Target::Cuda] {
            for (layout, name) in [
                (QuantLayout::Gptq, "int4-g32"),
                (QuantLayout::Gptq, "int4z-g32"),
                (QuantLayout::GptqV2, "int4z-g32"),
                (QuantLayout::Awq, "int4z-g32"),
            ] {
                same_values(requantised(stored.path(), layout, name).path(), target, name);
            }
            for (name, wanted) in [
                ("int4-g32", "int4-g32"),
                ("int4z-g64", "int4z-g64"),
                ("int8-row", "int8-row"),
                ("int8-g128", "int8-g128"),
                ("e4m3-row", "e4m3-row"),
            ] {
                let place = tempfile::tempdir().unwrap();
                let format = ScaledFormat::parse(name).unwrap();
                let q = Packing { format, scale: Storage::Bf16, method: Method::AbsMax, tokens: None };
                compressed(&source, q, Dtype::F32, place.path(), |_, _| {}).unwrap();
                same_values(place.path(), target, wanted);
            }
        }
    }

    /// One scale of a tensor is one of each row where tensors lie together, and blocks are values there.
    #[test]
    fn scales_that_go_nowhere_with_rows() {
        let stored = folder(&model(), Dtype::F32, u64::MAX);
        let source = Weights::open(stored.path(), &Model::load(stored.path().to_str().unwrap()).unwrap().0).unwrap().0;
        for (name, fused) in [("int8-tensor", Some("int8-row")), ("e4m3-b128", None)] {
            let place = tempfile::tempdir().unwrap();
            let q = Packing {
                format: ScaledFormat::parse(name).unwrap(),
                scale: Storage::F32,
                method: Method::AbsMax,
                tokens: None,
            };
            compressed(&source, q, Dtype::F32, place.path(), |_, _| {}).unwrap();
            let (model, _) = Model::load(place.path().to_str().unwrap()).unwrap();
            let weights = Weights::open(place.path(), &model).unwrap().0;
            let (precision, notes) = weights.precision(Dtype::F32, Target::Cpu);
            let of = |part: &str| precision.format(&format!("layers.1.{part}")).map(|f| f.format.to_string());
            assert_eq!(of("qkv").as_deref(), fused);
            assert_eq!(of("gate_up").as_deref(), fused);
            assert_eq!((of("o").as_deref(), of("down").as_deref()), (Some(name), Some(name)));
            assert_eq!(notes.len(), usize::from(fused.is_none()), "{notes:?}");
            filled(&weights, &model, &precision).unwrap();
        }
    }

    /// Quantising what is loaded is quantising the folder, where each row has its own scales.
    #[test]
    fn a_folder_that_is_packed_is_one_that_is_quantised_at_load() {
        let stored = folder(&model(), Dtype::F32, u64::MAX);
        let (model, _) = Model::load(stored.path().to_str().unwrap()).unwrap();
        let weights = Weights::open(stored.path(), &model).unwrap().0;
        for name in ["int4-g32", "int4z-g64", "int8-row", "e4m3-row"] {
            let wanted = WeightFormat::usual(ScaledFormat::parse(name).unwrap(), Dtype::Bf16);
            let loaded = filled(&weights, &model, Precision::linear(Dtype::Bf16, wanted, Target::Cpu)).unwrap();
            let place = tempfile::tempdir().unwrap();
            let q = Packing { format: wanted.format, scale: wanted.scale, method: Method::Search, tokens: None };
            compressed(&weights, q, Dtype::Bf16, place.path(), |_, _| {}).unwrap();
            let (packed, _) = Model::load(place.path().to_str().unwrap()).unwrap();
            let packed_weights = Weights::open(place.path(), &packed).unwrap().0;
            let (precision, _) = packed_weights.precision(Dtype::Bf16, Target::Cpu);
            assert_eq!(loaded, filled(&packed_weights, &packed, precision).unwrap(), "{name}");
        }
    }

    /// Codes by codes take scales in f32: those of the files, widened.
    #[test]
    fn a_folder_that_rounds_tokens_has_products_of_codes() {
        let stored = folder(&model(), Dtype::F32, u64::MAX);
        let (model, _) = Model::load(stored.path().to_str().unwrap()).unwrap();
        let weights = Weights::open(stored.path(), &model).unwrap().0;
        for (name, tokens) in [("int8-row", "int8-row"), ("e4m3-row", "e4m3-row"), ("e4m3-tensor", "e4m3-row")] {
            let format = ScaledFormat::parse(name).unwrap();
            let of = |tokens| {
                let place = tempfile::tempdir().unwrap();
                let q = Packing { format, scale: Storage::Bf16, method: Method::AbsMax, tokens };
                compressed(&weights, q, Dtype::Bf16, place.path(), |_, _| {}).unwrap();
                let (packed, _) = Model::load(place.path().to_str().unwrap()).unwrap();
                let packed_weights = Weights::open(place.path(), &packed).unwrap().0;
                let (precision, _) = packed_weights.precision(Dtype::Bf16, Target::Cuda);
                let down = precision.types("layers.0.down", [64, 128]).to_string();
                let layer = |part: &str| {
                    let name = format!("layers.0.down{part}");
                    let storage =
                        if part.is_empty() { format.codes } else { precision.format("layers.0.down").unwrap().scale };
                    (name, storage)
                };
                let all = filled(&packed_weights, &packed, precision.clone()).unwrap();
                let values = [layer(""), layer(SCALES)].map(|(name, storage)| {
                    let bytes = &all[&name];
                    let count = bytes.len() as u64 * 8 / storage.bits();
                    (0..count).map(|i| storage.value(bytes, i)).collect::<Vec<f64>>()
                });
                (down, values)
            };
            let (plain, coded) = (of(None), of(crate::problem::XFormat::parse(tokens)));
            assert_eq!(coded.0, format!("bf16 x={tokens} w={name}"), "{name}");
            assert!(plain.0.starts_with("bf16 w=") && plain.0.contains("scale=bf16"), "{}", plain.0);
            assert_eq!(plain.1[1], coded.1[1], "{name}");
            // The same codes, of which those without codes beside them lie in quads.
            let sorted = |mut v: Vec<f64>| {
                v.sort_by(f64::total_cmp);
                v
            };
            let [one, two] = [plain.1, coded.1].map(|[codes, _]| sorted(codes));
            assert_eq!(one, two, "{name}");
        }
    }

    #[test]
    fn blocks_of_ggml_are_taken_as_they_are() {
        let stored = folder(&model(), Dtype::F32, u64::MAX);
        let (model, _) = Model::load(stored.path().to_str().unwrap()).unwrap();
        let weights = Weights::open(stored.path(), &model).unwrap().0;
        let bytes = as_gguf(&model, &weights, |_| {});
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("m.gguf");
        // Whatever bytes are read as blocks of another type: the first of a tensor that is longer than they.
        let mut changed = bytes.clone();
        for name in
            ["ffn_gate", "ffn_up", "ffn_down"].iter().flat_map(|p| (0..2).map(move |l| format!("blk.{l}.{p}.weight")))
        {
            let at = bytes.windows(name.len()).position(|w| w == name.as_bytes()).unwrap() + name.len();
            changed[at + 20..at + 24].copy_from_slice(&8u32.to_le_bytes());
        }
        fs::write(&path, changed).unwrap();
        let (read, _) = Model::load(path.to_str().unwrap()).unwrap();
        let weights = Weights::open(&path, &read).unwrap().0;
        let (precision, _) = weights.precision(Dtype::F32, Target::Cpu);
        let of = |part: &str| precision.format(&format!("layers.0.{part}")).map(|f| f.to_string());
        assert_eq!(
            (of("down").as_deref(), of("gate_up").as_deref()),
            (Some("int8-g32 scale=f16"), Some("int8-g32 scale=f16"))
        );
        assert_eq!((of("qkv"), of("o")), (None, None));
    }

    /// Bytes that a file calls another type are not read as what they should have been.
    #[test]
    fn parts_of_another_type_are_refused_by_name() {
        let stored = folder(&model(), Dtype::F32, u64::MAX);
        let (model, _) = Model::load(stored.path().to_str().unwrap()).unwrap();
        let weights = Weights::open(stored.path(), &model).unwrap().0;
        for (name, part, (from, to)) in [
            ("int8-row", "weight_scale", ("F32", "I32")),
            ("int8-row", "weight", ("I8", "U8")),
            ("e4m3-row", "weight", ("F8_E4M3", "F8_E5M2")),
            ("int4-g32", "weight_packed", ("I32", "F32")),
        ] {
            let place = tempfile::tempdir().unwrap();
            let q = Packing {
                format: ScaledFormat::parse(name).unwrap(),
                scale: Storage::F32,
                method: Method::AbsMax,
                tokens: None,
            };
            compressed(&weights, q, Dtype::Bf16, place.path(), |_, _| {}).unwrap();
            let path = place.path().join("model.safetensors");
            let mut bytes = fs::read(&path).unwrap();
            let tensor = format!("model.layers.1.mlp.down_proj.{part}");
            let key = format!("\"{tensor}\":{{\"dtype\":\"{from}\"");
            let at = bytes.windows(key.len()).position(|w| w == key.as_bytes()).unwrap() + key.len() - 1 - from.len();
            bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
            fs::write(&path, bytes).unwrap();
            let (packed, _) = Model::load(place.path().to_str().unwrap()).unwrap();
            let e = Weights::open(place.path(), &packed).unwrap_err().to_string();
            assert!(e.contains(&tensor) && e.contains(from), "{name}: {e}");
        }
    }

    #[test]
    fn what_is_not_as_the_configuration_says_is_named() {
        let stored = folder(&model(), Dtype::F32, u64::MAX);
        let place = requantised(stored.path(), QuantLayout::GptqV2, "int4z-g32");
        let said = |change: &dyn Fn(&mut serde_json::Value)| {
            let path = place.path().join("config.json");
            let whole = fs::read_to_string(&path).unwrap();
            let mut config: serde_json::Value = serde_json::from_str(&whole).unwrap();
            change(&mut config);
            fs::write(&path, config.to_string()).unwrap();
            let said = match Model::load(place.path().to_str().unwrap()) {
                Err(e) => e.to_string(),
                Ok((model, _)) => match Weights::open(place.path(), &model) {
                    Err(e) => e.to_string(),
                    Ok((weights, _)) => weights.check().err().map_or_else(String::new, |e| e.to_string()),
                },
            };
            fs::write(&path, whole).unwrap();
            said
        };
        assert_eq!(said(&|_| {}), "");
        let e = said(&|c| c["quantization_config"]["sym"] = true.into());
        assert!(e.contains("is int4z-g32, and quantization_config says int4-g32"), "{e}");
        let e = said(&|c| c["quantization_config"]["group_size"] = 64.into());
        assert!(e.contains("qzeros") && e.contains("bytes"), "{e}");
        let e = said(&|c| c["intermediate_size"] = 200.into());
        assert!(e.contains("has the shape"), "{e}");
        let e = said(&|c| c["quantization_config"] = serde_json::Value::Null);
        assert!(e.contains("missing: model.layers.0.self_attn.q_proj.weight"), "{e}");
        let e = said(&|c| c["quantization_config"] = json!({ "quant_method": "awq", "bits": 4, "group_size": 32 }));
        assert!(e.contains("has the shape"), "{e}");
    }
}
