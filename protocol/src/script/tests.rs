//! What scripts find, answer and may take.

use super::*;

struct Store(Vec<Vec<Bytes>>);

impl ScriptHost for Store {
    fn call(&mut self, words: Vec<Bytes>, _: bool, _: u64) -> Called {
        if &words[0][..] == b"stop" {
            return Called::Stop;
        }
        let answer: &[u8] = match &words[0][..] {
            b"value" => b"$5\r\nvalue\r\n",
            b"none" => b"$-1\r\n",
            b"list" => b"*3\r\n$1\r\na\r\n:7\r\n$-1\r\n",
            b"ok" => b"+OK\r\n",
            _ => b"-ERR unknown\r\n",
        };
        self.0.push(words);
        Called::Answer(answer.to_vec(), 0)
    }

    fn may(&mut self, words: &[Bytes]) -> Option<bool> {
        (&words[0][..] != b"nosuch").then_some(true)
    }
}

const ALLOWED: RunAllowance =
    RunAllowance { steps: 500_000, memory_bytes: 8 << 20, answer_bytes: 1 << 20, cpu_time: None };

fn ended(body: &str) -> RunEnd {
    let keys = [Bytes::from_static(b"k1"), Bytes::from_static(b"k2")];
    let args = [Bytes::from_static(b"a1")];
    let asked = Run { body: body.as_bytes(), keys: &keys, args: &args, allowance: ALLOWED, seed: 0 };
    run(&asked, &mut Store(Vec::new())).0
}

fn told(body: &str) -> String {
    match ended(body) {
        RunEnd::Answer(answer) => String::from_utf8_lossy(&answer).replace("\r\n", "^"),
        RunEnd::Failed(text, place) => {
            let place = place.map_or(String::new(), |(source, line)| format!(" on {source}:{line}"));
            format!("failed {}{place}", String::from_utf8_lossy(&text))
        }
        other => format!("{other:?}"),
    }
}

#[test]
fn values_are_answered_as_redis_converts_them() {
    for (body, expected) in [
        ("return 1", ":1^"),
        ("return 3.99", ":3^"),
        ("return -0.5", ":0^"),
        ("return 1e300", ":-9223372036854775808^"),
        ("return true", ":1^"),
        ("return false", "_^"),
        ("return nil", "_^"),
        ("return 'a\\0b'", "$3^a\0b^"),
        ("return {1,2,nil,4}", "*2^:1^:2^"),
        ("return {1,{2,{}}}", "*2^:1^*2^:2^*0^"),
        ("return {ok='fine\\r\\n'}", "+fine  ^"),
        ("return {err='x'}", "-x^"),
        ("return {double=3.5}", ",3.5^"),
        ("return {map={a=1}}", "%1^$1^a^:1^"),
        ("return {set={a=true}}", "~1^$1^a^"),
        ("return {big_number='12'}", "(12^"),
        ("return {verbatim_string={format='txt',string='hi'}}", "=6^txt:hi^"),
        ("redis.setresp(3) return true", "#t^"),
        ("return {KEYS[1], KEYS[2], ARGV[1], #KEYS, ARGV[2]}", "*4^$2^k1^$2^k2^$2^a1^:2^"),
        ("return redis.call('value')", "$5^value^"),
        ("return type(redis.call('none'))", "$7^boolean^"),
        ("return redis.call('list')", "*3^$1^a^:7^_^"),
        ("return redis.call('ok')", "+OK^"),
        ("return redis.call('ok').ok", "$2^OK^"),
        ("return redis.pcall('bad')", "-ERR unknown^"),
        ("return redis.error_reply('x')", "-ERR x^"),
        ("return redis.error_reply('MY x')", "-MY x^"),
        (
            "local ok, e = pcall(redis.call, 'bad') return {tostring(ok), type(e), e}",
            "*3^$5^false^$6^string^$11^ERR unknown^",
        ),
        (
            "local ok, e = xpcall(function() redis.call('bad') end, function(e) return e.err end) return e",
            "$11^ERR unknown^",
        ),
        ("local ok, e = pcall(error, 'e') return e", "$1^e^"),
        ("return redis.acl_check_cmd('get', 'k')", ":1^"),
        ("return redis.sha1hex('')", "$40^da39a3ee5e6b4b0d3255bfef95601890afd80709^"),
        ("return {math.random(1000000), math.random(1000000)}", "*2^:170829^:749902^"),
        ("return function() end", "_^"),
    ] {
        assert_eq!(told(body), expected, "{body}");
    }
}

#[test]
fn errors_are_those_of_redis_with_their_places() {
    for (body, expected) in [
        ("error('boom')", "failed ERR user_script:1: boom on @user_script:1"),
        ("\nerror({err='MY x'})", "failed MY x on @user_script:2"),
        ("error()", "failed ERR nil on @user_script:1"),
        ("return xx", "failed ERR user_script:1: Script attempted to access nonexistent global variable 'xx' on @user_script:1"),
        ("x = 1", "failed ERR user_script:1: Attempt to modify a readonly table on @user_script:1"),
        ("string.x = 1", "failed ERR user_script:1: Attempt to modify a readonly table on @user_script:1"),
        ("rawset(_G, 'x', 1)", "failed ERR Attempt to modify a readonly table on @user_script:1"),
        ("return redis.call('bad')", "failed ERR unknown on @user_script:1"),
        ("redis.call()", "failed ERR Please specify at least one argument for this redis lib call on @user_script:1"),
        ("redis.call('x', {})", "failed ERR Lua redis lib command arguments must be strings or integers on @user_script:1"),
        ("local function f() return f() + 1 end return f()", "failed ERR user_script:1: stack overflow on @user_script:1"),
        ("return )", "NotCompiled(\"user_script:1: unexpected symbol near ')'\")"),
        ("print(1)", "failed ERR user_script:1: Script attempted to access nonexistent global variable 'print' on @user_script:1"),
        ("return loadstring(string.char(27))", "_^"),
    ] {
        assert_eq!(told(body), expected, "{body}");
    }
}

#[test]
fn nothing_catches_the_end_of_a_script() {
    for body in [
        "while true do end",
        "while true do pcall(function() while true do end end) end",
        "local function f() while true do end end while true do xpcall(f, function() return 1 end) end",
        "while true do coroutine.wrap(function() while true do end end)() end",
        "while true do coroutine.resume(coroutine.create(function() while true do end end)) end",
        "return (string.rep('a', 3000)):find(string.rep('a?', 30) .. string.rep('.-', 30) .. 'b')",
        "while true do string.rep('x', 1000000) end",
        "local t = setmetatable({}, {__index = function(t, k) return t[k + 1] end}) pcall(function() return t[1] end) while true do end",
        "local s = 'x' while true do s:upper() end",
        "table.sort({3, 2, 1}, function() while true do end end)",
        "return string.gsub('x', 'x', function() while true do end end)",
    ] {
        assert_eq!(ended(body), RunEnd::Over(Over::Steps), "{body}");
    }
    for body in [
        "local t = {} for i = 1, 1e9 do t[i] = {} end",
        "return string.rep('x', 1e9)",
        "local s = 'x' while true do s = s .. s end",
        "while true do pcall(function() local s = 'x' while true do s = s .. s end end) end",
    ] {
        let ended = ended(body);
        let is_bounded = matches!(ended, RunEnd::Over(Over::Memory | Over::Steps));
        assert!(is_bounded, "{body}: {ended:?}");
    }
    assert_eq!(ended("pcall(redis.call, 'stop') return 1"), RunEnd::Over(Over::Stopped));
    assert_eq!(ended("local s = string.rep('x', 600000) return {s, s}"), RunEnd::Over(Over::Answer));
}

#[test]
fn what_calls_itself_without_end_ends_on_a_short_stack() {
    let bodies = [
        "local function f() return pcall(f) end return f()",
        "local function f(n) local ok, e = pcall(f, n + 1) return e end return f(1)",
        "local function f() table.sort({3, 2, 1}, function() f() end) end f()",
        "local function f() coroutine.wrap(f)() end f()",
        "local function f() coroutine.resume(coroutine.create(f)) end f()",
        "local function f() string.gsub('x', 'x', f) end f()",
        "local t = setmetatable({}, {}) setmetatable(t, {__index = function(t, k) return t[k] end}) return t[1]",
        "local t = {} for i = 1, 20000 do t = {t} end return t",
        "local t = {} for i = 1, 20000 do t = {t} end return cjson.encode(t)",
        "return cjson.decode(('['):rep(100000))",
        "return loadstring(('('):rep(100000))",
        "return loadstring('return ' .. ('{'):rep(100000))",
        "return string.find(('a'):rep(10000), ('(a'):rep(1000))",
    ];
    let deep = std::thread::Builder::new().stack_size(1 << 20).spawn(move || {
        for body in bodies {
            ended(body);
            assert_eq!(told("return 1"), ":1^", "{body}");
        }
    });
    deep.expect("a thread").join().expect("no stack has ended");
}

#[test]
fn a_script_leaves_nothing_to_the_next_one() {
    for body in [
        "KEYS.x = 1 ARGV.x = 1 return KEYS.x",
        "local m = getmetatable('') if m then m.__index.x = 1 end return 1",
        "math.randomseed(7) return 1",
        "redis.setresp(3) return 1",
        "return loadstring('y = 1')",
        "pcall(function() string.upper = nil end) return 1",
        "pcall(setmetatable, string, {}) pcall(rawset, redis, 'call', nil) return 1",
        "while true do end",
    ] {
        ended(body);
        assert_eq!(
            told("return {tostring(KEYS.x), tostring(rawget(_G, 'y')), ('x'):upper()}"),
            "*3^$3^nil^$3^nil^$1^X^",
            "{body}"
        );
        assert_eq!(
            told("return {math.random(1000000), true, redis.call('value')}"),
            "*3^:170829^:1^$5^value^",
            "{body}"
        );
    }
}

#[test]
fn patterns_match_as_those_of_lua() {
    for (body, expected) in [
        ("return {string.find('hello', 'l+')}", "*2^:3^:4^"),
        ("return {string.find('hello', '(l)(l)')}", "*4^:3^:4^$1^l^$1^l^"),
        ("return {string.find('a.b', '.', 1, true)}", "*2^:2^:2^"),
        ("return {string.find('hello', '')}", "*2^:1^:0^"),
        ("return {string.find('hello', 'l', -2)}", "*2^:4^:4^"),
        ("return string.match('key=value', '(%w+)=(%w+)')", "$3^key^"),
        ("return {string.match('  trim  ', '^%s*(.-)%s*$')}", "*1^$4^trim^"),
        ("return string.match('f(a(b)c)d', '%b()')", "$7^(a(b)c)^"),
        ("return string.match('[]]x', '[]]+')", "$2^]]^"),
        ("return string.match('a-b', '[a%-]+')", "$2^a-^"),
        ("return string.match('THE (quick) fox', '%f[%a]%a+', 5)", "$5^quick^"),
        ("return {string.match('abab', '(ab)%1')}", "*1^$2^ab^"),
        ("return string.match('2026-11-30', '()-')", ":5^"),
        ("return {string.gsub('hello world', 'o', '0')}", "*2^$11^hell0 w0rld^:2^"),
        ("return {string.gsub('abc', '', '-')}", "*2^$7^-a-b-c-^:4^"),
        ("return {string.gsub('abc', '%w', '%0%0', 2)}", "*2^$5^aabbc^:2^"),
        ("return {string.gsub('hello world', '(%w+) (%w+)', '%2 %1')}", "*2^$11^world hello^:1^"),
        ("return {string.gsub('$x $y', '%$(%w)', {x='1'})}", "*2^$4^1 $y^:2^"),
        ("return {string.gsub('abc', '.', function(c) return c:upper() end)}", "*2^$3^ABC^:3^"),
        ("return {string.gsub('abc', '^a', 'x')}", "*2^$3^xbc^:1^"),
        ("local t = {} for k, v in string.gmatch('a=1, b=2', '(%w)=(%w)') do t[#t+1] = k .. v end return t", "*2^$2^a1^$2^b2^"),
        ("local at = string.find('x', '[a') return at", "failed ERR user_script:1: malformed pattern (missing ']') on @user_script:1"),
    ] {
        assert_eq!(told(body), expected, "{body}");
    }
}

#[test]
fn json_and_bits_are_as_in_redis() {
    for (body, expected) in [
        ("return cjson.encode({1, 2, 'x', {a = true}})", "$20^[1,2,\"x\",{\"a\":true}]^"),
        ("return cjson.encode({1.5, 1e20, -0.1, cjson.null})", "$21^[1.5,1e+20,-0.1,null]^"),
        ("return cjson.encode('/\\n\\1')", "$12^\"\\/\\n\\u0001\"^"),
        ("return cjson.encode({})", "$2^{}^"),
        ("return cjson.decode('{\"a\":[1,2,{\"b\":\"\\\\u00e9\"}]}').a[3].b", "$2^é^"),
        ("return cjson.decode('[null]')[1] == cjson.null", ":1^"),
        ("local t = cjson.decode('[1,') return t", "failed ERR user_script:1: Expected value but found T_END at character 4 on @user_script:1"),
        ("return {bit.band(0xff, 15), bit.bor(1, 2, 4), bit.bxor(5, 1), bit.bnot(0), bit.lshift(1, 4)}", "*5^:15^:7^:4^:-1^:16^"),
        ("return {bit.rshift(-1, 28), bit.arshift(-16, 2), bit.tohex(255, 4), bit.tohex(-1), bit.tobit(4294967295)}", "*5^:15^:-4^$4^00ff^$8^ffffffff^:-1^"),
    ] {
        assert_eq!(told(body), expected, "{body}");
    }
}

#[test]
fn the_first_line_of_a_script_may_say_that_it_does_not_write() {
    let read = |text: &'static str| ScriptText::read(&Bytes::from_static(text.as_bytes()));
    let text = read("#!lua flags=no-writes,allow-stale\nreturn 1").unwrap();
    assert!(text.is_read_only);
    assert_eq!(text.body(), b"\nreturn 1");
    assert_eq!(read("return 1").unwrap().digest, "e0e1f9fabfc9d4800c877a703b823ac0578ff8db");
    for (text, why) in [
        ("#!lua", "Invalid script shebang"),
        ("#!py\n", "Unexpected engine in script shebang: #!py"),
        ("#!lua name=x\n", "Unknown lua shebang option: name=x"),
        ("#!lua flags=nosuch\n", "Unexpected flag in script shebang: nosuch"),
    ] {
        assert_eq!(read(text), Err(why.to_owned()));
    }
}
