//! The topics of the native dialect and of Azure, parsed and built in one place.
//!
//! Knows names only: what a topic carries and who may use it now is decided elsewhere. A device
//! speaks below its own `devices/{id}/`, nowhere else.

use crate::id::DeviceId;

/// Longest topic or filter taken, in bytes.
pub const TOPIC_LEN_MAX: usize = 1024;
/// Longest stream name, in characters.
pub const STREAM_LEN_MAX: usize = 64;
/// Longest request id, in bytes.
pub const RID_LEN_MAX: usize = 128;
/// Entries of one Azure property bag.
pub const PROPERTY_COUNT_MAX: usize = 64;

/// What a device may publish to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublishTopic {
    /// `stream` is empty for the default one.
    Telemetry {
        stream: String,
    },
    AzureTelemetry {
        properties: PropertyBag,
    },
    /// Without a request id the answer goes to the response topic of the request.
    TwinGet {
        rid: Option<String>,
    },
    TwinReported {
        rid: Option<String>,
    },
    /// `rid` is empty on `methods/res`: the correlation data alone says what is answered.
    MethodResponse {
        rid: String,
    },
}

/// What Azure's clients put at the end of the telemetry topic, decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PropertyBag {
    /// `$.mid`
    pub message_id: Option<String>,
    /// `$.ct`
    pub content_type: Option<String>,
    /// `$.ce`
    pub content_encoding: Option<String>,
    /// `$.ctime`, as sent
    pub created_at: Option<String>,
    /// The rest, in order; names may repeat, and unknown `$.x` are kept.
    pub properties: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// A wildcard in a publish, or in a filter where it would leave the device's own tree.
    #[error("a wildcard stands where none is allowed")]
    Wildcard,
    #[error("the topic belongs to another device")]
    Foreign,
    #[error("no such topic in this dialect")]
    Unknown,
    /// Empty, too long, U+0000, or a part that breaks its rules.
    #[error("the topic is malformed")]
    Invalid,
    #[error("shared subscriptions are not offered")]
    Shared,
}

/// Reads the topic of a publish by `own`.
///
/// # Errors
/// The protocol's reason code follows from the variant.
pub fn parse_publish(own: &DeviceId, topic: &str) -> Result<PublishTopic, TopicError> {
    check_text(topic)?;
    if topic.contains(['+', '#']) {
        return Err(TopicError::Wildcard);
    }
    let rest = below_own(own, topic)?;
    if rest == "telemetry" {
        return Ok(PublishTopic::Telemetry { stream: String::new() });
    }
    if let Some(stream) = rest.strip_prefix("telemetry/") {
        return match is_stream_name(stream) {
            true => Ok(PublishTopic::Telemetry {
                stream: stream.to_owned(),
            }),
            false => Err(TopicError::Invalid),
        };
    }
    match rest {
        "twin/get" => return Ok(PublishTopic::TwinGet { rid: None }),
        "twin/reported" => return Ok(PublishTopic::TwinReported { rid: None }),
        _ => {}
    }
    if let Some(rid) = rest.strip_prefix("twin/get/") {
        let rid = Some(parse_rid(rid)?);
        return Ok(PublishTopic::TwinGet { rid });
    }
    if let Some(rid) = rest.strip_prefix("twin/reported/") {
        let rid = Some(parse_rid(rid)?);
        return Ok(PublishTopic::TwinReported { rid });
    }
    if rest == "methods/res" {
        return Ok(PublishTopic::MethodResponse { rid: String::new() });
    }
    if let Some(rid) = rest.strip_prefix("methods/res/") {
        return Ok(PublishTopic::MethodResponse { rid: parse_rid(rid)? });
    }
    match rest.strip_prefix("messages/events") {
        Some("") => Ok(PublishTopic::AzureTelemetry {
            properties: PropertyBag::default(),
        }),
        Some(bag) if bag.starts_with('/') => Ok(PublishTopic::AzureTelemetry {
            properties: parse_bag(&bag[1..])?,
        }),
        _ => Err(TopicError::Unknown),
    }
}

/// Whether `own` may subscribe to `filter`: any lawful filter below its own tree.
///
/// # Errors
/// The protocol's reason code follows from the variant.
pub fn check_filter(own: &DeviceId, filter: &str) -> Result<(), TopicError> {
    check_text(filter)?;
    if filter == "$share" || filter.starts_with("$share/") {
        return Err(TopicError::Shared);
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let wild = level.contains(['+', '#']);
        let lawful = level == "+" || (level == "#" && levels.peek().is_none());
        if wild && !lawful {
            return Err(TopicError::Invalid);
        }
    }
    let mut head = filter.split('/');
    let (root, id) = (head.next(), head.next());
    let is_wild = |level: Option<&str>| matches!(level, Some("+" | "#"));
    if is_wild(root) || (root == Some("devices") && is_wild(id)) {
        return Err(TopicError::Wildcard);
    }
    below_own(own, filter).map(drop)
}

/// Whether `topic`, without wildcards, lies below the tree of `own`.
///
/// # Errors
/// The protocol's reason code follows from the variant.
pub fn check_below(own: &DeviceId, topic: &str) -> Result<(), TopicError> {
    check_text(topic)?;
    if topic.contains(['+', '#']) {
        return Err(TopicError::Wildcard);
    }
    below_own(own, topic).map(drop)
}

/// MQTT's matching of a topic against a lawful filter.
pub fn filter_matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            // `a/#` also matches `a`.
            (Some("#"), _) => return true,
            (Some("+"), Some(_)) => {}
            (Some(want), Some(level)) if want == level => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

/// 1 to 64 of the characters of device ids.
pub fn is_stream_name(text: &str) -> bool {
    text.len() <= STREAM_LEN_MAX && DeviceId::parse(text).is_ok()
}

/// The device in whose tree a topic or filter lies, if it names one.
pub fn owner(topic: &str) -> Option<DeviceId> {
    let (id, _) = topic.strip_prefix("devices/")?.split_once('/')?;
    DeviceId::parse(id).ok()
}

/// The child for which the session of `own` keeps this filter, which matches nothing that is ever
/// published: the child's subscriptions are in the child's session.
pub fn marked_child(own: &DeviceId, filter: &str) -> Option<DeviceId> {
    let child = owner(filter)?;
    (child != *own && filter == tree(&child)).then_some(child)
}

/// What everything of a device lies below.
pub fn tree(id: &DeviceId) -> String {
    format!("devices/{id}/")
}

/// 1 to 64 of the characters of device ids; not `res`, where the answers go.
pub fn is_method_name(text: &str) -> bool {
    is_stream_name(text) && text != "res"
}

/// Up: the default stream for an empty `stream`.
pub fn telemetry(id: &DeviceId, stream: &str) -> String {
    match stream {
        "" => format!("devices/{id}/telemetry"),
        stream => format!("devices/{id}/telemetry/{stream}"),
    }
}

/// Up.
pub fn twin_get(id: &DeviceId, rid: &str) -> String {
    format!("devices/{id}/twin/get/{rid}")
}

/// Up.
pub fn twin_reported(id: &DeviceId, rid: &str) -> String {
    format!("devices/{id}/twin/reported/{rid}")
}

/// Down: the answer to `twin/get` and `twin/reported`.
pub fn twin_response(id: &DeviceId, rid: &str) -> String {
    format!("devices/{id}/twin/res/{rid}")
}

/// Down.
pub fn twin_desired(id: &DeviceId) -> String {
    format!("devices/{id}/twin/desired")
}

/// Down.
pub fn method_call(id: &DeviceId, name: &str, rid: &str) -> String {
    format!("devices/{id}/methods/{name}/{rid}")
}

/// Up.
pub fn method_response(id: &DeviceId, rid: &str) -> String {
    format!("devices/{id}/methods/res/{rid}")
}

/// Down.
pub fn message(id: &DeviceId, message_id: &str) -> String {
    format!("devices/{id}/messages/{message_id}")
}

fn check_text(text: &str) -> Result<(), TopicError> {
    if text.is_empty() || text.len() > TOPIC_LEN_MAX || text.contains('\0') {
        return Err(TopicError::Invalid);
    }
    Ok(())
}

/// What follows `devices/{own}/`.
fn below_own<'t>(own: &DeviceId, topic: &'t str) -> Result<&'t str, TopicError> {
    let below = topic.strip_prefix("devices/").ok_or(TopicError::Unknown)?;
    match below.split_once('/') {
        Some((id, rest)) if id == own.as_str() => Ok(rest),
        None if below == own.as_str() => Err(TopicError::Unknown),
        _ => Err(TopicError::Foreign),
    }
}

fn parse_rid(text: &str) -> Result<String, TopicError> {
    if text.is_empty() || text.len() > RID_LEN_MAX || text.contains('/') {
        return Err(TopicError::Invalid);
    }
    Ok(text.to_owned())
}

/// `key=value&key=value`, both percent-encoded. Some clients begin with `?` or end with `/`.
fn parse_bag(text: &str) -> Result<PropertyBag, TopicError> {
    let text = text.strip_suffix('/').unwrap_or(text);
    let text = text.strip_prefix('?').unwrap_or(text);
    let mut bag = PropertyBag::default();
    for (index, pair) in text.split('&').filter(|pair| !pair.is_empty()).enumerate() {
        if index >= PROPERTY_COUNT_MAX {
            return Err(TopicError::Invalid);
        }
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (percent_decoded(key)?, percent_decoded(value)?);
        match key.as_str() {
            "" => return Err(TopicError::Invalid),
            "$.mid" => bag.message_id = Some(value).filter(|id| !id.is_empty()),
            "$.ct" => bag.content_type = Some(value),
            "$.ce" => bag.content_encoding = Some(value),
            "$.ctime" => bag.created_at = Some(value),
            _ => bag.properties.push((key, value)),
        }
    }
    Ok(bag)
}

/// Plain percent-decoding: `+` is a plus sign.
fn percent_decoded(text: &str) -> Result<String, TopicError> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || {
            let digit = char::from(bytes.next()?).to_digit(16)?;
            u8::try_from(digit).ok()
        };
        let (high, low) = (digit().ok_or(TopicError::Invalid)?, digit().ok_or(TopicError::Invalid)?);
        out.push(high << 4 | low);
    }
    String::from_utf8(out)
        .ok()
        .filter(|text| !text.contains('\0'))
        .ok_or(TopicError::Invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> DeviceId {
        DeviceId::parse("lamp").expect("a lawful id")
    }

    /// `topic -> what it means`, for the device `lamp`.
    fn check(row: &str) {
        let (topic, expected) = row.rsplit_once(" -> ").expect("a row has an arrow");
        let got = match parse_publish(&own(), topic) {
            Ok(PublishTopic::Telemetry { stream }) => format!("telemetry [{stream}]"),
            Ok(PublishTopic::TwinGet { rid }) => format!("get {}", rid.unwrap_or_default()),
            Ok(PublishTopic::TwinReported { rid }) => format!("reported {}", rid.unwrap_or_default()),
            Ok(PublishTopic::MethodResponse { rid }) => format!("answer [{rid}]"),
            Ok(PublishTopic::AzureTelemetry { properties: p }) => {
                let mut text = "azure".to_owned();
                let named = [
                    ("mid", p.message_id),
                    ("ct", p.content_type),
                    ("ce", p.content_encoding),
                ];
                for (name, value) in named.iter().chain(&[("ctime", p.created_at)]) {
                    if let Some(value) = value {
                        text += &format!(" {name}={value}");
                    }
                }
                for (key, value) in p.properties {
                    text += &format!(" ({key}={value})");
                }
                text
            }
            Err(error) => format!("{error:?}"),
        };
        assert_eq!(got, expected, "{topic}");
    }

    #[test]
    fn a_device_publishes_to_its_own_topics_only() {
        check("devices/lamp/telemetry -> telemetry []");
        check("devices/lamp/telemetry/door -> telemetry [door]");
        check("devices/lamp/telemetry/ -> Invalid");
        check("devices/lamp/telemetry/a/b -> Invalid");
        check("devices/lamp/telemetry/ä -> Invalid");
        check("devices/lamp/twin/get/7 -> get 7");
        check("devices/lamp/twin/get/ -> Invalid");
        check("devices/lamp/twin/get/7/8 -> Invalid");
        check("devices/lamp/twin/get -> get ");
        check("devices/lamp/twin/reported -> reported ");
        check("devices/lamp/twin/getx -> Unknown");
        check("devices/lamp/twin/reported/a-b -> reported a-b");
        check("devices/lamp/twin/desired -> Unknown");
        check("devices/lamp/methods/res/3-1 -> answer [3-1]");
        check("devices/lamp/methods/res -> answer []");
        check("devices/lamp/methods/res/ -> Invalid");
        check("devices/lamp/methods/reboot/3-1 -> Unknown");
        check("devices/lamp/telemetr -> Unknown");
        check("devices/lamp/ -> Unknown");
        check("devices/lamp -> Unknown");
        check("devices/lampe/telemetry -> Foreign");
        check("devices/LAMP/telemetry -> Foreign");
        check("devices//telemetry -> Foreign");
        check("/devices/lamp/telemetry -> Unknown");
        check("devices/lamp/telemetry/+ -> Wildcard");
        check("devices/lamp/# -> Wildcard");
        check("# -> Wildcard");
        check("$SYS/broker -> Unknown");
        check("devices/lamp/telemetry\0 -> Invalid");
        check(" -> Invalid");
        let long = |extra: usize| "x".repeat(TOPIC_LEN_MAX + extra);
        assert_eq!(parse_publish(&own(), &long(0)), Err(TopicError::Unknown));
        assert_eq!(parse_publish(&own(), &long(1)), Err(TopicError::Invalid));
        let stream = |len| parse_publish(&own(), &telemetry(&own(), &"s".repeat(len)));
        assert!(stream(64).is_ok());
        assert_eq!(stream(65), Err(TopicError::Invalid));
    }

    #[test]
    fn azure_property_bags_are_decoded() {
        check("devices/lamp/messages/events -> azure");
        check("devices/lamp/messages/events/ -> azure");
        check("devices/lamp/messages/events/?a=1/ -> azure (a=1)");
        check("devices/lamp/messages/events/%24.mid=m%2F1&%24.ct=application%2Fjson&$.ce=utf-8&a=b%20c&a -> azure mid=m/1 ct=application/json ce=utf-8 (a=b c) (a=)");
        check("devices/lamp/messages/events/$.ctime=2024-01-01T00%3A00%3A00Z&$.cid=7 -> azure ctime=2024-01-01T00:00:00Z ($.cid=7)");
        check("devices/lamp/messages/events/a=%C3%A4 -> azure (a=ä)");
        check("devices/lamp/messages/events/a=%C3 -> Invalid");
        check("devices/lamp/messages/events/a=%0 -> Invalid");
        check("devices/lamp/messages/events/a=%00 -> Invalid");
        check("devices/lamp/messages/events/a=%+1 -> Wildcard");
        check("devices/lamp/messages/events/=1 -> Invalid");
        check("devices/lamp/messages/eventsx -> Unknown");
        let bag = |count: usize| format!("devices/lamp/messages/events/{}", vec!["a=1"; count].join("&"));
        assert!(parse_publish(&own(), &bag(PROPERTY_COUNT_MAX)).is_ok());
        assert_eq!(
            parse_publish(&own(), &bag(PROPERTY_COUNT_MAX + 1)),
            Err(TopicError::Invalid)
        );
    }

    #[test]
    fn filters_stay_in_the_own_tree() {
        let check = |filter: &str, expected| assert_eq!(check_filter(&own(), filter), expected, "{filter}");
        check("devices/lamp/#", Ok(()));
        check("devices/lamp/+/res/#", Ok(()));
        check("devices/lamp/twin/desired", Ok(()));
        check("devices/lamp/a#", Err(TopicError::Invalid));
        check("devices/lamp/#/a", Err(TopicError::Invalid));
        check("devices/lamp/a+/b", Err(TopicError::Invalid));
        check("", Err(TopicError::Invalid));
        check("#", Err(TopicError::Wildcard));
        check("+/lamp/#", Err(TopicError::Wildcard));
        check("devices/#", Err(TopicError::Wildcard));
        check("devices/+/telemetry", Err(TopicError::Wildcard));
        check("devices/other/#", Err(TopicError::Foreign));
        check("devices/lamp", Err(TopicError::Unknown));
        check("$SYS/#", Err(TopicError::Unknown));
        check("$share/g/devices/lamp/#", Err(TopicError::Shared));
    }

    #[test]
    fn filters_match_as_mqtt_says() {
        let check = |filter, topic, expected| assert_eq!(filter_matches(filter, topic), expected, "{filter} {topic}");
        check("a/b", "a/b", true);
        check("a/b", "a/b/c", false);
        check("a/b/c", "a/b", false);
        check("a/+", "a/b", true);
        check("a/+", "a", false);
        check("a/+", "a/", true);
        check("a/#", "a", true);
        check("a/#", "a/b/c", true);
        check("a/#", "ab", false);
        check("+/b", "/b", true);
        check("#", "$SYS/x", false);
        check("+/x", "$SYS/x", false);
        check("$SYS/#", "$SYS/x", true);
    }

    #[test]
    fn method_names_are_one_level_and_not_where_answers_go() {
        let rows = [
            ("reboot", true),
            ("a.b-c:d", true),
            ("res", false),
            ("", false),
            ("a/b", false),
            ("a+", false),
            ("#", false),
        ];
        for (name, expected) in rows {
            assert_eq!(is_method_name(name), expected, "{name}");
        }
        assert!(is_method_name(&"m".repeat(64)) && !is_method_name(&"m".repeat(65)));
    }

    #[test]
    fn built_topics_are_read_back() {
        let id = own();
        assert!(matches!(
            parse_publish(&id, &twin_get(&id, "1")),
            Ok(PublishTopic::TwinGet { .. })
        ));
        assert!(matches!(
            parse_publish(&id, &twin_reported(&id, "1")),
            Ok(PublishTopic::TwinReported { .. })
        ));
        let down = [
            twin_response(&id, "1"),
            twin_desired(&id),
            method_call(&id, "reboot", "1"),
            method_response(&id, "1"),
            message(&id, "m"),
        ];
        for topic in down {
            assert!(filter_matches("devices/lamp/#", &topic), "{topic}");
        }
    }
}
