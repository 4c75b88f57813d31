//! A model's chat template: Jinja as transformers renders it.

use super::TokenizerError;
use crate::file;
use crate::limits::MAX_MODEL_TEXT_BYTES;
use jiff::ZonedDateTime;
use jiff::fmt::strtime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, State, context};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// What a template may take: instructions, and 64 bytes of text that it makes for each; so a text that grows by doubling ends
/// below 256 MB. Templates of Llama 3.2, Mistral Nemo and Qwen 3 take 39 to 69 thousand for a thousand short messages, and 230
/// to 450 thousand for a thousand messages of 4 MiB together, which is the most that the server reads.
///
/// Some texts minijinja counts only once they are there, such as those of lists in lists, of what a list is joined of, and of
/// widths that `str.format` and `tojson` are asked for. A template that is made for it can take memory by these, since nothing
/// in this process can stop a text half way.
const FUEL: u64 = 4_000_000;

/// A message of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who says it: system, user or assistant.
    pub role: String,
    /// What.
    pub content: String,
}

pub(super) struct Template {
    text: String,
    begin: String,
    end: String,
}

/// The template of a folder: of `chat_template.jinja`, or of `tokenizer_config.json`, the one named default where there are
/// several.
pub(super) fn of_folder(folder: &Path) -> Result<Option<Template>, TokenizerError> {
    let file = folder.join("tokenizer_config.json");
    let config: Value = match file::text(&file, MAX_MODEL_TEXT_BYTES) {
        Ok(text) => {
            serde_json::from_str(&text).map_err(|e| TokenizerError::File { path: file.clone(), why: e.to_string() })?
        }
        Err(_) => Value::Null,
    };
    let special = |key: &str| {
        let token = &config[key];
        token.as_str().or_else(|| token["content"].as_str()).unwrap_or_default().to_string()
    };
    let named = |list: &Vec<Value>| {
        let default = list.iter().find(|t| t["name"] == "default");
        default.and_then(|t| t["template"].as_str()).map(String::from)
    };
    let template = &config["chat_template"];
    let text = file::text(&folder.join("chat_template.jinja"), MAX_MODEL_TEXT_BYTES).ok();
    let text = text.or_else(|| template.as_str().map(String::from)).or_else(|| template.as_array().and_then(named));
    Ok(text.map(|text| Template::new(&text, [special("bos_token"), special("eos_token")])))
}

impl Template {
    /// A template, and the texts of the tokens that begin and end a text.
    pub fn new(text: &str, [begin, end]: [String; 2]) -> Template {
        Template { text: text.into(), begin, end }
    }

    pub fn render(&self, messages: &[Message]) -> Result<String, TokenizerError> {
        let failed = |e: minijinja::Error| match e.kind() {
            ErrorKind::OutOfFuel => TokenizerError::TemplateTooLong,
            _ => TokenizerError::Template(format!("{e:#}")),
        };
        let mut jinja = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?;
        jinja.set_syntax(syntax);
        jinja.set_fuel(Some(FUEL));
        jinja.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        jinja.add_function("raise_exception", |why: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, why))
        });
        jinja.add_function("strftime_now", now);
        jinja.add_template("chat", &self.text).map_err(failed)?;
        let values = context! {
            messages => Serde(messages), add_generation_prompt => true, bos_token => &self.begin, eos_token => &self.end,
        };
        jinja.get_template("chat").and_then(|t| t.render(values)).map_err(failed)
    }
}

/// The local time, written as a format of C's strftime says.
fn now(state: &State, format: &str) -> Result<String, minijinja::Error> {
    // Five bytes of it can ask for 255 of text.
    state.consume_fuel(format.len() as u64)?;
    let bad = |e: jiff::Error| minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}"));
    strtime::format(format, &ZonedDateTime::now()).map_err(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(template: &str, messages: &[(&str, &str)]) -> Result<String, String> {
        let messages: Vec<Message> = messages
            .iter()
            .map(|(role, content)| Message { role: (*role).into(), content: (*content).into() })
            .collect();
        let template = Template::new(template, ["<s>".into(), "</s>".into()]);
        template.render(&messages).map_err(|e| e.to_string())
    }

    #[test]
    fn templates_are_rendered_as_transformers_does() {
        // Blocks leave no line behind, methods are Python's, and loops may be left.
        let template = "{{ bos_token }}{% for m in messages %}\n    {% if m['role'] == 'tool' %}\n{% continue %}\n    \
                        {% endif %}\n<|{{ m.role.upper() }}|>{{ m['content'].strip() }}{{ eos_token }}\n{% endfor %}\n\
                        {% if add_generation_prompt %}\n<|ASSISTANT|>{% endif %}";
        let text = said(template, &[("user", "  hello "), ("tool", "x"), ("user", "again")]).unwrap();
        assert_eq!(text, "<s><|USER|>hello</s>\n<|USER|>again</s>\n<|ASSISTANT|>");
        assert_eq!(said("{{ messages | tojson }}", &[("user", "a")]).unwrap(), r#"[{"role": "user", "content": "a"}]"#);
    }

    #[test]
    fn what_a_template_refuses_is_said() {
        let why = said("{{ raise_exception('roles must alternate') }}", &[]).unwrap_err();
        assert!(why.contains("roles must alternate"), "{why}");
        assert!(said("{% if %}", &[]).is_err());
    }

    #[test]
    fn templates_are_told_the_time() {
        let date = said("{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}", &[]).unwrap();
        let parts: Vec<&str> = date.split(' ').collect();
        let [day, month, year] = parts[..] else { panic!("{date}") };
        let count = |text: &str, is: fn(&u8) -> bool| text.bytes().filter(is).count();
        assert_eq!(count(day, u8::is_ascii_digit), 2, "{date}");
        assert_eq!(count(month, u8::is_ascii_alphabetic), 3, "{date}");
        assert!(year.parse::<u32>().unwrap() >= 2026, "{date}");
        assert_eq!(said("{{ strftime_now('%H:%M:%S').split(':')|length }}", &[]).unwrap(), "3");
        let why = said("{{ strftime_now('%!') }}", &[]).unwrap_err();
        assert!(why.contains("strftime_now: "), "{why}");
        assert!(said("{{ strftime_now('%255Y' * 1000000) }}", &[]).unwrap_err().contains("more time or memory"));
    }

    #[test]
    fn what_goes_on_or_grows_for_ever_ends() {
        let grows = |how: &str| {
            format!(
                "{{% set ns = namespace(x='ab') %}}{{% for i in range(60) %}}{how}{{% endfor %}}{{{{ ns.x|length }}}}"
            )
        };
        for template in [
            "{% for i in range(100000) %}{% for i in range(100000) %}{% endfor %}{% endfor %}".into(),
            grows("{% set ns.x = ns.x ~ ns.x %}"),
            grows("{% set ns.x = ns.x + ns.x %}"),
            grows("{% set ns.x = ns.x * 2 %}"),
            grows("{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
            grows("{% set ns.x = ns.x.replace('a', ns.x) %}"),
            grows("{% set ns.x = ns.x|replace('a', ns.x) %}"),
            grows("{{ 'a' * 10000000 }}"),
        ] {
            let e = Template::new(&template, Default::default()).render(&[]).unwrap_err();
            assert!(matches!(e, TokenizerError::TemplateTooLong), "{template}: {e}");
        }
    }

    /// As much as the server reads, in more messages than anybody sends.
    #[test]
    fn a_long_chat_has_room() {
        let template = "{% for m in messages[::-1] %}{% if m.content.startswith('<x>') %}{% break %}{% endif %}{% endfor %}\
                        {% for m in messages %}{% if '</think>' in m.content %}{% set content = \
                        m.content.split('</think>')[-1].lstrip('\n') %}{% else %}{% set content = m.content|trim %}{% endif %}\
                        {{ '<|im_start|>' + m.role + '\n' + content + '<|im_end|>\n' }}{% endfor %}";
        for (count, length) in [(1000, 4190), (20_000, 200)] {
            let content = "word ".repeat(length / 5);
            let messages = vec![("user", content.as_str()); count];
            let text = said(template, &messages).unwrap();
            assert!(text.len() > count * (length + 20), "{}", text.len());
        }
    }
}
