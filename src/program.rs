//! Programs: steps over named tensors. A forward pass of a model is one; so is the chain of kernels that a fusion replaces.
//!
//! A step is a problem and, in the order of its tensors, which tensors of the program they are. [`Program::check`] says
//! whether the steps chain: what a step reads is given or was written before, and every tensor is the same to all who use
//! it. Knows no device, no kernel and no address.

use crate::problem::{Layout, Problem, Role, Storage, Tensor};
use serde::Serialize;
use std::collections::HashMap;

/// Steps in the order in which they run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Program {
    /// What the steps are over.
    pub tensors: Vec<Named>,
    /// The steps.
    pub steps: Vec<Step>,
    /// Where in `tensors` each name is: a program of many layers is built in time linear in them.
    places: HashMap<String, usize>,
}

/// A tensor of a program.
#[derive(Clone, Debug, PartialEq)]
pub struct Named {
    /// Its name, one of a kind in the program.
    pub name: String,
    /// How long it lives, and who writes it.
    pub life: Life,
    /// Its element type.
    pub storage: Storage,
    /// Its shape, outermost first.
    pub shape: Vec<u64>,
    /// How the natural tensor is arranged in it.
    pub layout: Layout,
}

impl Named {
    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.storage.bytes(self.shape.iter().fold(1, |all: u64, d| all.saturating_mul(*d)))
    }
}

/// How long a tensor lives, and who writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Life {
    /// Read only and the same in every run: weights, the table of RoPE's cosines and sines.
    Weight,
    /// Kept from run to run: a cache that steps write and read.
    State,
    /// Given anew for every run: ids, positions, slots, block tables, lengths.
    Metadata,
    /// Written by one step and read by later ones of the same run.
    Activation,
}

/// One kernel's work.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// What it is in the whole.
    pub role: String,
    /// What is computed.
    pub problem: Problem,
    /// Positions in [`Program::tensors`], in the order of the problem's tensors.
    pub tensors: Vec<usize>,
}

/// Why the steps of a program do not chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("step {step} ({role}), tensor {tensor}: {why}")]
pub struct ProgramError {
    /// Which step, from 0.
    pub step: usize,
    /// Its role.
    pub role: String,
    /// The tensor as the step's problem calls it.
    pub tensor: String,
    /// What is wrong.
    pub why: String,
}

impl Program {
    /// Adds a step over tensors of these names, in the order of the problem's; a name that is new is declared as the
    /// problem describes it, with this life. Names beyond the problem's tensors, or missing ones, are found by `check`.
    pub fn step<N: AsRef<str>>(&mut self, role: &str, problem: Problem, names: &[(Life, N)]) {
        let mut described = None;
        let mut tensors = Vec::with_capacity(names.len());
        for (i, (life, name)) in names.iter().enumerate() {
            let name = name.as_ref();
            let known = self.places.get(name).copied();
            let at = known.unwrap_or_else(|| {
                let t = described.get_or_insert_with(|| problem.tensors()).get(i);
                self.places.insert(name.into(), self.tensors.len());
                self.tensors.push(Named {
                    name: name.into(),
                    life: *life,
                    storage: t.map_or(Storage::F32, |t| t.storage),
                    shape: t.map_or_else(Vec::new, |t| t.shape.clone()),
                    layout: t.map_or(Layout::RowMajor, |t| t.layout),
                });
                self.tensors.len() - 1
            });
            tensors.push(at);
        }
        self.steps.push(Step { role: role.into(), problem, tensors });
    }

    /// These steps over those of its tensors that they use.
    #[cfg(feature = "engine")]
    pub(crate) fn of(&self, mut steps: Vec<Step>) -> Program {
        let mut used = vec![false; self.tensors.len()];
        steps.iter().flat_map(|step| &step.tensors).for_each(|at| used[*at] = true);
        let mut program = Program::default();
        let mut places = vec![0; self.tensors.len()];
        for (at, tensor) in self.tensors.iter().enumerate().filter(|(at, _)| used[*at]) {
            places[at] = program.tensors.len();
            program.places.insert(tensor.name.clone(), program.tensors.len());
            program.tensors.push(tensor.clone());
        }
        steps.iter_mut().flat_map(|step| &mut step.tensors).for_each(|at| *at = places[*at]);
        Program { steps, ..program }
    }

    /// The position of the tensor of that name.
    pub fn tensor(&self, name: &str) -> Option<usize> {
        self.places.get(name).copied()
    }

    /// Says what keeps the steps from chaining: a tensor too many or too few, one that is another to one step than to the
    /// other, an activation that is read before it is written, or written twice, or never read (the outputs of the last
    /// step are the program's), a weight or metadata that a step would write.
    pub fn check(&self) -> Result<(), ProgramError> {
        let mut written = vec![false; self.tensors.len()];
        let mut read = vec![false; self.tensors.len()];
        for (number, step) in self.steps.iter().enumerate() {
            let described = step.problem.tensors();
            let wrong = |tensor: &str, why: String| {
                Err(ProgramError { step: number, role: step.role.clone(), tensor: tensor.into(), why })
            };
            if described.len() != step.tensors.len() {
                let why = format!("{} has {} tensors, {} are named", step.problem, described.len(), step.tensors.len());
                return wrong("", why);
            }
            // What it reads before what it writes: a step's own output is nobody's input yet.
            for role in [Role::In, Role::Out] {
                for (t, &at) in described.iter().zip(&step.tensors).filter(|(t, _)| t.role == role) {
                    let Some(named) = self.tensors.get(at) else {
                        return wrong(t.name, format!("the program has no tensor {at}"));
                    };
                    if let Err(why) = same(t, named) {
                        return wrong(t.name, why);
                    }
                    let name = &named.name;
                    match (t.role, named.life) {
                        (Role::In, Life::Activation) if !written[at] => {
                            return wrong(t.name, format!("{name} is read before any step writes it"));
                        }
                        (Role::Out, Life::Activation) if written[at] => {
                            return wrong(t.name, format!("{name} is written a second time"));
                        }
                        (Role::Out, Life::Weight | Life::Metadata) => {
                            return wrong(t.name, format!("{name} is given, and the step would write it"));
                        }
                        (Role::In, _) => read[at] = true,
                        (Role::Out, _) => written[at] = true,
                    }
                }
            }
        }
        let Some((last, step)) = self.steps.iter().enumerate().next_back() else { return Ok(()) };
        for (at, named) in self.tensors.iter().enumerate() {
            let result = step.tensors.contains(&at);
            if !read[at] && !result && named.life != Life::State {
                let why = format!("{} is used by no step", named.name);
                return Err(ProgramError { step: last, role: step.role.clone(), tensor: String::new(), why });
            }
        }
        Ok(())
    }
}

/// Whether a step's tensor is the program's: type and layout, and the shape, where rows that are dense may be written as
/// one number of columns or as several (heads × head_dim).
fn same(t: &Tensor, named: &Named) -> Result<(), String> {
    let elements = |shape: &[u64]| shape.iter().fold(1u64, |all, d| all.saturating_mul(*d));
    let rows = |shape: &[u64]| (shape.first().copied(), elements(shape));
    let shaped = match t.layout {
        Layout::RowMajor => rows(&t.shape) == rows(&named.shape),
        _ => t.shape == named.shape,
    };
    if t.storage != named.storage {
        return Err(format!("{} is of {:?}, and {:?} is wanted", named.name, named.storage, t.storage));
    }
    if t.layout != named.layout {
        return Err(format!("{} is laid out as {:?}, and {:?} is wanted", named.name, named.layout, t.layout));
    }
    if !shaped {
        return Err(format!("{} has the shape {:?}, and {:?} is wanted", named.name, named.shape, t.shape));
    }
    Ok(())
}
