//! The few calls of a PKCS#11 library (OASIS PKCS#11 2.40, C binding) that tell whether a key can
//! be used and that read certificates, and the switches of OpenSSL that use such a library.
//!
//! Runs on the threads that connect. A library stays loaded and initialised for the life of the
//! process: OpenSSL's engine or provider uses the same one, and its login ends with ours if we
//! finalise or log out. Deliberately not here: URLs, what a PIN may be tried for.

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::io;
use std::mem;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;

type Ulong = libc::c_ulong;

/// `CKR_PIN_INCORRECT`, `CKR_PIN_INVALID`, `CKR_PIN_LEN_RANGE`: this PIN is not the token's.
const BAD_PIN: [Ulong; 3] = [0xa0, 0xa1, 0xa2];
const CKR_OK: Ulong = 0;
const CKR_USER_ALREADY_LOGGED_IN: Ulong = 0x100;
const CKR_CRYPTOKI_ALREADY_INITIALIZED: Ulong = 0x191;

const CKF_OS_LOCKING_OK: Ulong = 2;
const CKF_SERIAL_SESSION: Ulong = 4;
const CKF_LOGIN_REQUIRED: Ulong = 0x4;
const CKF_TOKEN_INITIALIZED: Ulong = 0x400;
const CKF_USER_PIN_FINAL_TRY: Ulong = 0x2_0000;
const CKF_USER_PIN_LOCKED: Ulong = 0x4_0000;
const CKU_USER: Ulong = 1;

const CKA_CLASS: Ulong = 0x0;
const CKA_LABEL: Ulong = 0x3;
const CKA_VALUE: Ulong = 0x11;
const CKA_ISSUER: Ulong = 0x81;
const CKA_SUBJECT: Ulong = 0x101;
const CKA_ID: Ulong = 0x102;

/// Slots and objects looked at; a token of a unit has a handful.
const MAX_FOUND: usize = 64;
/// Largest attribute that is read.
const MAX_ATTRIBUTE_BYTES: usize = 64 << 10;

/// Why a library or token cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot load PKCS#11 library {path}: {reason}")]
    Load { path: PathBuf, reason: String },
    /// The code is one of the CKR_ values.
    #[error("{call} of PKCS#11 library {path}: error {code:#x}")]
    Call { path: PathBuf, call: &'static str, code: Ulong },
}

impl Error {
    /// The token refused the PIN, and has counted that.
    pub fn is_bad_pin(&self) -> bool {
        matches!(self, Self::Call { call: "C_Login", code, .. } if BAD_PIN.contains(code))
    }
}

/// What an object is.
#[derive(Clone, Copy, Debug)]
pub enum Class {
    /// `CKO_CERTIFICATE`
    Certificate,
    /// `CKO_PRIVATE_KEY`
    PrivateKey,
}

impl Class {
    fn code(self) -> Ulong {
        match self {
            Self::Certificate => 1,
            Self::PrivateKey => 3,
        }
    }
}

/// How objects are looked up; what is `None` does not matter.
#[derive(Clone, Copy, Default, Debug)]
pub struct Query<'a> {
    pub label: Option<&'a [u8]>,
    pub id: Option<&'a [u8]>,
    /// DER of the distinguished name.
    pub subject: Option<&'a [u8]>,
}

/// A slot with a token in it.
#[derive(Clone, Debug)]
pub struct Token {
    slot: Ulong,
    /// Without the padding.
    pub label: Vec<u8>,
    flags: Ulong,
}

impl Token {
    pub fn is_initialised(&self) -> bool {
        self.flags & CKF_TOKEN_INITIALIZED != 0
    }

    pub fn needs_login(&self) -> bool {
        self.flags & CKF_LOGIN_REQUIRED != 0
    }

    /// One more wrong PIN locks it.
    pub fn has_one_try_left(&self) -> bool {
        self.flags & CKF_USER_PIN_FINAL_TRY != 0
    }

    pub fn is_locked(&self) -> bool {
        self.flags & CKF_USER_PIN_LOCKED != 0
    }
}

/// A loaded and initialised library.
#[derive(Debug)]
pub struct Module {
    functions: &'static Functions,
    path: PathBuf,
}

impl Module {
    /// Loads the library, for good.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let refused = |reason: String| Error::Load { path: path.to_owned(), reason };
        let name = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| refused("the path contains a NUL byte".to_owned()))?;
        let functions = functions(&name).map_err(refused)?;
        let module = Self { functions, path: path.to_owned() };
        let arguments = InitArgs { flags: CKF_OS_LOCKING_OK, ..InitArgs::default() };
        // SAFETY: the structure is the one of the standard and outlives the call.
        match unsafe { (functions.initialize)(&raw const arguments) } {
            CKR_CRYPTOKI_ALREADY_INITIALIZED => {}
            code => module.check("C_Initialize", code)?,
        }
        Ok(module)
    }

    /// All slots that hold a token; at most 64 are looked at.
    pub fn tokens(&self) -> Result<Vec<Token>, Error> {
        let mut slots = [0; MAX_FOUND];
        let mut count = as_ulong(slots.len());
        // SAFETY: `count` is the length of the array.
        let code = unsafe { (self.functions.get_slot_list)(1, slots.as_mut_ptr(), &raw mut count) };
        self.check("C_GetSlotList", code)?;
        slots.iter().take(as_usize(count)).map(|slot| self.token(*slot)).collect()
    }

    fn token(&self, slot: Ulong) -> Result<Token, Error> {
        // SAFETY: integers and arrays of them; all zero is a value.
        let mut info: TokenInfo = unsafe { mem::zeroed() };
        // SAFETY: the structure is the one of the standard and outlives the call.
        let code = unsafe { (self.functions.get_token_info)(slot, &raw mut info) };
        self.check("C_GetTokenInfo", code)?;
        Ok(Token { slot, label: info.label.trim_ascii_end().to_vec(), flags: info.flags })
    }

    /// Opens a session for reading; it ends with the returned value.
    pub fn session(&self, token: &Token) -> Result<Session<'_>, Error> {
        let mut handle = 0;
        // SAFETY: no callback is given, so nothing is called with the null pointer.
        let code = unsafe {
            (self.functions.open_session)(
                token.slot,
                CKF_SERIAL_SESSION,
                ptr::null_mut(),
                ptr::null(),
                &raw mut handle,
            )
        };
        self.check("C_OpenSession", code)?;
        Ok(Session { module: self, handle })
    }

    fn check(&self, call: &'static str, code: Ulong) -> Result<(), Error> {
        match code {
            CKR_OK => Ok(()),
            code => Err(Error::Call { path: self.path.clone(), call, code }),
        }
    }
}

/// Object of a token, valid in its session.
#[derive(Clone, Copy, Debug)]
pub struct Object(Ulong);

/// A session; closed at drop, never logged out, since the login belongs to the whole process.
#[derive(Debug)]
pub struct Session<'a> {
    module: &'a Module,
    handle: Ulong,
}

impl Session<'_> {
    /// Tries the PIN of the user, unless the process is logged in already.
    pub fn login(&self, pin: &[u8]) -> Result<(), Error> {
        // SAFETY: pointer and length are one slice.
        let code = unsafe {
            (self.module.functions.login)(self.handle, CKU_USER, pin.as_ptr(), as_ulong(pin.len()))
        };
        match code {
            CKR_USER_ALREADY_LOGGED_IN => Ok(()),
            code => self.module.check("C_Login", code),
        }
    }

    /// The objects that fit, at most 64.
    pub fn find(&self, class: Class, query: Query<'_>) -> Result<Vec<Object>, Error> {
        let class = class.code().to_ne_bytes();
        let mut wanted = vec![Attribute::given(CKA_CLASS, &class)];
        wanted.extend(query.label.map(|label| Attribute::given(CKA_LABEL, label)));
        wanted.extend(query.id.map(|id| Attribute::given(CKA_ID, id)));
        wanted.extend(query.subject.map(|subject| Attribute::given(CKA_SUBJECT, subject)));
        let functions = self.module.functions;
        // SAFETY: the attributes and what they point to outlive the call.
        let code = unsafe {
            (functions.find_init)(self.handle, wanted.as_mut_ptr(), as_ulong(wanted.len()))
        };
        self.module.check("C_FindObjectsInit", code)?;
        let mut found = [0; MAX_FOUND];
        let mut count = 0;
        // SAFETY: the length is that of the array.
        let code = unsafe {
            (functions.find)(self.handle, found.as_mut_ptr(), as_ulong(found.len()), &raw mut count)
        };
        // SAFETY: a plain call.
        let ended = unsafe { (functions.find_final)(self.handle) };
        self.module.check("C_FindObjects", code)?;
        self.module.check("C_FindObjectsFinal", ended)?;
        Ok(found.into_iter().take(as_usize(count)).map(Object).collect())
    }

    /// DER of a certificate.
    pub fn value(&self, object: Object) -> Result<Vec<u8>, Error> {
        self.attribute(object, CKA_VALUE)
    }

    /// DER of the name of whoever signed a certificate.
    pub fn issuer(&self, object: Object) -> Result<Vec<u8>, Error> {
        self.attribute(object, CKA_ISSUER)
    }

    /// DER of the name of whom a certificate is for.
    pub fn subject(&self, object: Object) -> Result<Vec<u8>, Error> {
        self.attribute(object, CKA_SUBJECT)
    }

    fn attribute(&self, object: Object, kind: Ulong) -> Result<Vec<u8>, Error> {
        let mut value = vec![0; MAX_ATTRIBUTE_BYTES];
        let mut attribute =
            Attribute { kind, value: value.as_mut_ptr().cast(), length: as_ulong(value.len()) };
        // SAFETY: the attribute points to a buffer of the length that it says.
        let code = unsafe {
            (self.module.functions.get_attributes)(self.handle, object.0, &raw mut attribute, 1)
        };
        self.module.check("C_GetAttributeValue", code)?;
        // "Unavailable" is the largest number.
        let length = as_usize(attribute.length);
        value.truncate(if length <= MAX_ATTRIBUTE_BYTES { length } else { 0 });
        value.shrink_to_fit();
        Ok(value)
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        // SAFETY: the session is ours and ends here. What the library says changes nothing.
        unsafe { (self.module.functions.close_session)(self.handle) };
    }
}

/// A provider of this name is active in OpenSSL's configuration.
pub fn has_provider(name: &CStr) -> bool {
    // SAFETY: no library context means the default one; the name is a C string.
    unsafe { OSSL_PROVIDER_available(ptr::null_mut(), name.as_ptr()) == 1 }
}

/// Loads OpenSSL's engine and gives it the PKCS#11 library. It stays in OpenSSL's list, so that
/// the gRPC library finds it with this setting.
pub fn set_up_engine(name: &CStr, library: &Path) -> io::Result<()> {
    let library = CString::new(library.as_os_str().as_bytes())?;
    // SAFETY: a C string; the reference that comes back is freed below.
    let engine = unsafe { ENGINE_by_id(name.as_ptr()) };
    if engine.is_null() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "OpenSSL has no such engine"));
    }
    // SAFETY: a live engine and C strings; the last argument makes the command mandatory.
    let done =
        unsafe { ENGINE_ctrl_cmd_string(engine, c"MODULE_PATH".as_ptr(), library.as_ptr(), 0) };
    // SAFETY: our reference, given back once.
    unsafe { ENGINE_free(engine) };
    match done {
        1 => Ok(()),
        _ => Err(io::Error::other("the engine does not take a library")),
    }
}

// libcrypto, which the gRPC library is linked with.
unsafe extern "C" {
    fn OSSL_PROVIDER_available(context: *mut c_void, name: *const c_char) -> c_int;
    fn ENGINE_by_id(id: *const c_char) -> *mut c_void;
    fn ENGINE_ctrl_cmd_string(
        engine: *mut c_void,
        command: *const c_char,
        argument: *const c_char,
        optional: c_int,
    ) -> c_int;
    fn ENGINE_free(engine: *mut c_void) -> c_int;
}

// SAFETY: the table is never written, and the library was told to lock by itself.
unsafe impl Send for Functions {}
// SAFETY: as above.
unsafe impl Sync for Functions {}

fn functions(name: &CStr) -> Result<&'static Functions, String> {
    // SAFETY: a C string. The library's initialisers run as those of any library the host trusts.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if library.is_null() {
        return Err(last_error());
    }
    // SAFETY: a live handle and a C string.
    let symbol = unsafe { libc::dlsym(library, c"C_GetFunctionList".as_ptr()) };
    if symbol.is_null() {
        return Err("it has no C_GetFunctionList".to_owned());
    }
    // SAFETY: the symbol of this name has this type in every PKCS#11 library.
    let list: unsafe extern "C" fn(*mut *const Functions) -> Ulong =
        unsafe { mem::transmute(symbol) };
    let mut functions = ptr::null();
    // SAFETY: it fills the pointer.
    match unsafe { list(&raw mut functions) } {
        // SAFETY: the standard promises a full table of version 2 that lives as long as the
        // library, which is never unloaded.
        CKR_OK if !functions.is_null() => Ok(unsafe { &*functions }),
        code => Err(format!("C_GetFunctionList failed with {code:#x}")),
    }
}

fn last_error() -> String {
    // SAFETY: called after a failure on this thread; the text is valid until the next call.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "unknown reason".to_owned();
    }
    // SAFETY: not null, so a C string.
    let text = unsafe { CStr::from_ptr(text) };
    OsStr::from_bytes(text.to_bytes()).to_string_lossy().into_owned()
}

fn as_ulong(length: usize) -> Ulong {
    Ulong::try_from(length).unwrap_or(Ulong::MAX)
}

/// What the library says is only ever used to shorten.
fn as_usize(length: Ulong) -> usize {
    usize::try_from(length).unwrap_or(0)
}

/// `CK_ATTRIBUTE`
#[repr(C)]
struct Attribute {
    kind: Ulong,
    value: *mut c_void,
    length: Ulong,
}

impl Attribute {
    /// For queries, where the library only reads.
    fn given(kind: Ulong, value: &[u8]) -> Self {
        Self { kind, value: value.as_ptr().cast_mut().cast(), length: as_ulong(value.len()) }
    }
}

/// `CK_C_INITIALIZE_ARGS`: the library may use the locks of the system.
#[repr(C)]
struct InitArgs {
    mutex_functions: [*const c_void; 4],
    flags: Ulong,
    reserved: *const c_void,
}

impl Default for InitArgs {
    fn default() -> Self {
        Self { mutex_functions: [ptr::null(); 4], flags: 0, reserved: ptr::null() }
    }
}

/// `CK_TOKEN_INFO`
#[repr(C)]
struct TokenInfo {
    label: [u8; 32],
    _manufacturer_model_serial: [u8; 32 + 16 + 16],
    flags: Ulong,
    _limits: [Ulong; 10],
    _versions: [u8; 4],
    _time: [u8; 16],
}

/// The head of `CK_FUNCTION_LIST`, as far as it is used.
#[repr(C)]
#[derive(Debug)]
struct Functions {
    _version: [u8; 2],
    initialize: unsafe extern "C" fn(*const InitArgs) -> Ulong,
    _finalize_to_function_list: [*const c_void; 3],
    get_slot_list: unsafe extern "C" fn(u8, *mut Ulong, *mut Ulong) -> Ulong,
    _slot_info: *const c_void,
    get_token_info: unsafe extern "C" fn(Ulong, *mut TokenInfo) -> Ulong,
    _mechanisms_to_set_pin: [*const c_void; 5],
    open_session:
        unsafe extern "C" fn(Ulong, Ulong, *mut c_void, *const c_void, *mut Ulong) -> Ulong,
    close_session: unsafe extern "C" fn(Ulong) -> Ulong,
    _close_all_to_operation_state: [*const c_void; 4],
    login: unsafe extern "C" fn(Ulong, Ulong, *const u8, Ulong) -> Ulong,
    _logout_to_object_size: [*const c_void; 5],
    get_attributes: unsafe extern "C" fn(Ulong, Ulong, *mut Attribute, Ulong) -> Ulong,
    _set_attributes: *const c_void,
    find_init: unsafe extern "C" fn(Ulong, *mut Attribute, Ulong) -> Ulong,
    find: unsafe extern "C" fn(Ulong, *mut Ulong, Ulong, *mut Ulong) -> Ulong,
    find_final: unsafe extern "C" fn(Ulong) -> Ulong,
}
