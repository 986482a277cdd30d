#include "safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <string_view>
#include <utility>

#include "error.h"
#include "json.h"
#include "xxh64.h"

namespace looplm {

namespace {

constexpr size_t length_bytes = 8;
constexpr size_t longest_header = 100'000'000;  // bytes; the limit of Hugging Face's reader
constexpr size_t most_dimensions = 64;
constexpr char header_key[] = "looplm.xxh64", tensors_key[] = "looplm.xxh64.tensors";
constexpr size_t checksum_digits = 16;

constexpr std::pair<std::string_view, size_t> dtype_sizes[] = {
    {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"U16", 2}, {"I16", 2}, {"F16", 2},
    {"BF16", 2}, {"U32", 4}, {"I32", 4}, {"F32", 4},     {"U64", 8},     {"I64", 8}, {"F64", 8}};

size_t dtype_size(std::string_view dtype) {  // 0 when unknown
  for (const auto& [name, size] : dtype_sizes)
    if (name == dtype) return size;
  return 0;
}

// Bytes of a tensor: the product of its shape and the element size; false if that overflows.
bool tensor_bytes(const std::vector<int64_t>& shape, size_t element, size_t* bytes) {
  *bytes = element;
  for (const int64_t n : shape)
    if (n != 0 && __builtin_mul_overflow(*bytes, size_t(n), bytes)) return false;
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) *bytes = 0;
  return true;
}

class HeaderParser {
 public:
  HeaderParser(const std::string& path, const void* file, size_t size)
      : path_(path), file_(static_cast<const uint8_t*>(file)), size_(size), text_(header()), reader_(text_) {}

  SafetensorsContents parse() {
    try {
      reader_.object([&](const std::string& name) {
        if (name == "__metadata__") metadata();
        else tensor(name);
        where_.clear();
      });
      reader_.end();
    } catch (const json::SyntaxError& error) {
      fail(error.what());
    }
    check_coverage();
    take_checksums();
    return std::move(contents_);
  }

 private:
  struct Span {
    size_t begin, end;
    const std::string* name;
  };

  [[noreturn]] void fail(const std::string& what) const {
    throw Error("INVALID_FILE", "safetensors", path_ + ": " + where_ + what);
  }

  // The text of the header, after checking that it lies within the file.
  std::string_view header() {
    if (size_ < length_bytes) fail("the file has " + std::to_string(size_) + " bytes, not even the 8 of the header's length");
    uint64_t length = 0;
    for (size_t i = length_bytes; i-- > 0;) length = length << 8 | file_[i];
    if (length > longest_header) fail("the header's length, " + std::to_string(length) + " bytes, is above the limit of 100 MB");
    if (length > size_ - length_bytes)
      fail("the header's length, " + std::to_string(length) + " bytes, is more than the file has left (" +
           std::to_string(size_ - length_bytes) + ")");
    const std::string_view text(reinterpret_cast<const char*>(file_) + length_bytes, length);
    if (!text.starts_with('{')) fail("the header does not start with '{'");
    data_ = file_ + length_bytes + length;
    data_bytes_ = size_ - length_bytes - length;
    return text;
  }

  void metadata() {
    where_ = "__metadata__: ";
    reader_.object([&](const std::string& key) {
      where_ = "__metadata__: " + json::quote_briefly(key) + ": ";
      contents_.metadata[key] = reader_.string();
      where_ = "__metadata__: ";
    });
  }

  void tensor(const std::string& name) {
    const std::string tensor = "tensor " + json::quote_briefly(name) + ": ";
    SafetensorsEntry entry;
    std::vector<int64_t> offsets;
    bool has_dtype = false, has_shape = false, has_offsets = false;
    where_ = tensor;
    reader_.object([&](const std::string& field) {
      where_ = tensor + json::quote_briefly(field) + ": ";
      if (field == "dtype") {
        entry.dtype = reader_.string();
        has_dtype = true;
      } else if (field == "shape") {
        integers(entry.shape, most_dimensions);
        has_shape = true;
      } else if (field == "data_offsets") {
        integers(offsets, 2);
        has_offsets = true;
      } else {
        fail("unknown field; a tensor has dtype, shape and data_offsets");
      }
      where_ = tensor;
    });
    if (!has_dtype) fail("dtype is missing");
    if (!has_shape) fail("shape is missing");
    if (!has_offsets) fail("data_offsets is missing");
    add(name, std::move(entry), offsets);
  }

  void integers(std::vector<int64_t>& out, size_t most) {
    reader_.array([&] {
      if (out.size() == most) fail("more than " + std::to_string(most) + " entries");
      out.push_back(reader_.natural_number());
    });
  }

  void add(const std::string& name, SafetensorsEntry entry, const std::vector<int64_t>& offsets) {
    const size_t element = dtype_size(entry.dtype);
    if (element == 0) fail("dtype " + json::quote_briefly(entry.dtype) + " is not known");
    size_t bytes = 0;
    if (!tensor_bytes(entry.shape, element, &bytes)) fail("the product of shape overflows");
    if (offsets.size() != 2) fail("data_offsets must be two integers, begin and end");
    const size_t begin = size_t(offsets[0]), end = size_t(offsets[1]);
    if (begin > end) fail("data_offsets end before they begin");
    if (end > data_bytes_)
      fail("data_offsets end at byte " + std::to_string(end) + " of the data, which has " + std::to_string(data_bytes_) +
           " (is the file cut short?)");
    if (end - begin != bytes)
      fail("data_offsets span " + std::to_string(end - begin) + " bytes, but shape and dtype need " + std::to_string(bytes));
    entry.data = data_ + begin;
    entry.bytes = bytes;
    const auto place = contents_.tensors.emplace(name, std::move(entry)).first;
    spans_.push_back({begin, end, &place->first});
  }

  // Checks that the tensors fill the data section without gaps or overlaps.
  void check_coverage() {
    std::sort(spans_.begin(), spans_.end(),
              [](const Span& a, const Span& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
    size_t end = 0;
    const std::string* last = nullptr;
    for (const Span& span : spans_) {
      where_ = "tensor " + json::quote_briefly(*span.name) + ": ";
      if (span.begin < end) fail("data_offsets overlap those of tensor " + json::quote_briefly(*last));
      if (span.begin > end) fail("no tensor covers the " + std::to_string(span.begin - end) + " bytes of data in front of it");
      end = span.end;
      last = span.name;
    }
    where_.clear();
    if (end != data_bytes_) fail("no tensor covers the last " + std::to_string(data_bytes_ - end) + " bytes of the file");
  }

  // Verifies the header's checksum, and stores in every entry the checksum that its bytes should have.
  void take_checksums() {
    if (const auto header = contents_.metadata.extract(header_key)) {
      where_ = std::string("__metadata__: \"") + header_key + "\": ";
      const std::string key = json::quote(header_key) + ":\"";
      const size_t place = text_.find(key);
      std::string text(text_);
      if (place != text.npos && header.mapped().size() == checksum_digits)
        text.replace(place + key.size(), checksum_digits, checksum_digits, '0');
      if (checksum_text(xxh64(text.data(), text.size())) != header.mapped())
        fail(std::string("the header has another checksum: the file is damaged, or a tool changed it and copied the checksum. "
                         "Restore the file. To read it unchecked, remove this key and \"") +
             tensors_key + "\"");
    }
    if (const auto tensors = contents_.metadata.extract(tensors_key)) {
      where_ = std::string("__metadata__: \"") + tensors_key + "\": ";
      const char *next = tensors.mapped().data(), *end = next + tensors.mapped().size();
      for (const Span& span : spans_) {
        next += next != end && *next == ' ';
        uint64_t checksum = 0;
        const auto [stop, error] = std::from_chars(next, end, checksum, 16);
        if (error != std::errc()) fail("must be " + std::to_string(spans_.size()) + " checksums of 16 hexadecimal digits");
        contents_.tensors.at(*span.name).checksum = checksum;
        next = stop;
      }
    }
    where_.clear();
  }

  const std::string& path_;
  const uint8_t* file_;
  size_t size_;
  const uint8_t* data_ = nullptr;
  size_t data_bytes_ = 0;
  std::string where_;  // prefix of every error message: the tensor and the field
  std::string_view text_;
  json::Reader reader_;
  SafetensorsContents contents_;
  std::vector<Span> spans_;
};

// The reason of a failed system call. Uses the words of src/errors.ts where a user can do something about it.
std::string explain(int reason) {
  switch (reason) {
    case ENOSPC:
      return "the disk is full; free some space (ENOSPC)";
    case EDQUOT:
      return "the disk quota is used up; free some space (EDQUOT)";
    case EFBIG:
      return "the file would be larger than the limit of this process or file system (ulimit -f) (EFBIG)";
    case EACCES:
      return "permission denied; choose another folder or change its permissions (EACCES)";
    case EROFS:
      return "the file system is read-only; choose another folder (EROFS)";
    case ENOTDIR:
      return "a part of the path is a file, not a folder; choose another path (ENOTDIR)";
    case EISDIR:
      return "it is a folder, not a file; choose another path (EISDIR)";
    case ELOOP:
      return "the symbolic links in the path form a cycle; remove one of them (ELOOP)";
    case ENAMETOOLONG:
      return "a name in the path is too long; choose a shorter one (ENAMETOOLONG)";
    default:
      return std::strerror(reason);
  }
}

[[noreturn]] void fail_system(const char* operation, const std::string& path, const char* what) {
  const int reason = errno;
  throw Error(reason == ENOENT ? "NOT_FOUND" : "INVALID_FILE", operation, path + ": " + what + ": " + explain(reason));
}

// Owns a file descriptor.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  operator int() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

// A temporary file next to `path`. commit() renames it to `path`; without commit() it is deleted.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& path) : path_(path), fd_(create()) {}
  ~TemporaryFile() {
    if (!committed_) ::unlink(temporary_.c_str());
  }
  TemporaryFile(const TemporaryFile&) = delete;

  void write(const void* bytes, size_t count) {
    const auto* next = static_cast<const char*>(bytes);
    while (count > 0) {
      const ssize_t written = ::write(fd_, next, count);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail("cannot be written");
      next += written;
      count -= size_t(written);
    }
  }

  void go_back_to(size_t place) {
    if (::lseek(fd_, off_t(place), SEEK_SET) < 0) fail("cannot be written");
  }

  void commit() {
    if (::fsync(fd_) != 0 || ::close(fd_.release()) != 0) fail("cannot be written");
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail("cannot be replaced");
    committed_ = true;
    const size_t slash = path_.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : path_.substr(0, slash + 1);
    const Descriptor directory(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (directory < 0 || ::fsync(directory) != 0) fail("was written, but its folder cannot be synced");
  }

 private:
  [[noreturn]] void fail(const char* what) const { fail_system("save", path_, what); }

  int create() {
    static std::atomic<unsigned> counter{0};
    while (true) {
      temporary_ = path_ + ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(counter++);
      const int fd = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
      if (fd >= 0) return fd;
      if (errno != EEXIST) fail("cannot be created");  // EEXIST: left behind by a process that was killed
    }
  }

  const std::string path_;
  std::string temporary_;
  Descriptor fd_;
  bool committed_ = false;
};

template <class Bits>
size_t first_with_exponent(Bits mask, const void* values, size_t count) {
  constexpr size_t block = 4096;
  const auto* bytes = static_cast<const uint8_t*>(values);
  const auto special = [&](size_t i) {
    Bits bits;
    std::memcpy(&bits, bytes + i * sizeof(Bits), sizeof(Bits));
    return Bits((bits & mask) == mask ? ~Bits{0} : Bits{0});  // a mask as wide as the value, so that the compiler vectorizes
                                                              // the loop
  };
  for (size_t begin = 0; begin < count; begin += block) {
    const size_t end = std::min(count, begin + block);
    Bits any = 0;
    for (size_t i = begin; i < end; i++) any |= special(i);
    for (size_t i = begin; any && i < end; i++)
      if (special(i)) return i;
  }
  return count;
}

void append_member(std::string& out, const std::string& key) {
  if (out.back() != '{') out += ',';
  out += json::quote(key);
  out += ':';
}

void append_integers(std::string& out, const std::vector<int64_t>& values) {
  out += '[';
  for (const int64_t value : values) {
    if (out.back() != '[') out += ',';
    out += std::to_string(value);
  }
  out += ']';
}

// The header's JSON text. checksums: one per tensor (or zeros, for a header of the same length).
std::string header_text(const std::vector<SafetensorsOutput>& tensors, const std::vector<size_t>& sizes,
                        const std::map<std::string, std::string>& metadata, const std::vector<uint64_t>& checksums) {
  std::string out = "{\"__metadata__\":{", list;
  append_member(out, header_key);
  out += json::quote(checksum_text(0));
  for (const auto& [key, value] : metadata) {
    append_member(out, key);
    out += json::quote(value);
  }
  for (const uint64_t checksum : checksums) list += (list.empty() ? "" : " ") + checksum_text(checksum);
  append_member(out, tensors_key);
  out += json::quote(list) + '}';
  size_t begin = 0;
  for (size_t i = 0; i < tensors.size(); i++) {
    append_member(out, tensors[i].name);
    out += "{\"dtype\":";
    out += json::quote(tensors[i].dtype);
    out += ",\"shape\":";
    append_integers(out, tensors[i].shape);
    out += ",\"data_offsets\":";
    append_integers(out, {int64_t(begin), int64_t(begin + sizes[i])});
    out += '}';
    begin += sizes[i];
  }
  out += '}';
  return out.append((8 - out.size() % 8) % 8, ' ');  // pads with spaces, so that the data starts at a multiple of 8 bytes
}

}  // namespace

void refuse_file(const std::string& path, const std::string& what) { throw Error("INVALID_FILE", "load", path + ": " + what); }
void refuse_tensor(const std::string& path, const std::string& tensor, const std::string& what) {
  refuse_file(path, "tensor " + json::quote_briefly(tensor) + ": " + what);
}

void check_checksum(const std::string& path, const std::string& tensor, const SafetensorsEntry& entry, uint64_t found) {
  if (!entry.checksum || *entry.checksum == found) return;
  refuse_tensor(path, tensor,
                "its bytes have the checksum " + checksum_text(found) + ", the header says " + checksum_text(*entry.checksum) +
                    ": the file is damaged. Restore it from a copy");
}
void check_checksum(const std::string& path, const std::string& tensor, const SafetensorsEntry& entry) {
  if (entry.checksum) check_checksum(path, tensor, entry, xxh64(entry.data, entry.bytes));
}

SafetensorsContents parse_safetensors(const std::string& path, const void* file, size_t size) {
  return HeaderParser(path, file, size).parse();
}

MappedFile::MappedFile(const std::string& path) {
  // O_NONBLOCK: opening a named pipe must not block
  const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd < 0) fail_system("load", path, "cannot be opened");
  struct stat status;
  if (::fstat(fd, &status) != 0) fail_system("load", path, "cannot be examined");
  if (!S_ISREG(status.st_mode)) refuse_file(path, "is not a regular file");
  size_ = size_t(status.st_size);
  if (size_ == 0) return;  // an empty file cannot be mapped
  void* mapping = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
  if (mapping == MAP_FAILED) fail_system("load", path, "cannot be mapped");
  data_ = mapping;
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(data_, size_);
}

void MappedFile::forget(const void* from, size_t bytes) {
  const auto page = uintptr_t(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(from) + page - 1) / page * page,
                  end = (reinterpret_cast<uintptr_t>(from) + bytes) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

void write_safetensors(const std::string& path, const std::vector<SafetensorsOutput>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  std::vector<size_t> sizes(tensors.size());
  for (size_t i = 0; i < tensors.size(); i++) {
    const size_t element = dtype_size(tensors[i].dtype);
    if (element == 0 || !tensor_bytes(tensors[i].shape, element, &sizes[i]))
      throw Error("INVALID_ARGUMENT", "save",
                  "tensor " + json::quote_briefly(tensors[i].name) + ": unknown dtype, or its size overflows");
  }
  std::vector<uint64_t> checksums(tensors.size());
  std::string header = header_text(tensors, sizes, metadata, checksums);
  uint8_t length[length_bytes];
  for (size_t i = 0; i < length_bytes; i++) length[i] = uint8_t(uint64_t(header.size()) >> 8 * i);

  TemporaryFile file(path);
  file.write(length, sizeof length);
  file.write(header.data(), header.size());
  std::vector<uint8_t> bytes;
  for (size_t i = 0; i < tensors.size(); i++) {
    bytes.resize(sizes[i]);
    tensors[i].fill(bytes.data());
    checksums[i] = xxh64(bytes.data(), bytes.size());
    file.write(bytes.data(), bytes.size());
  }
  header = header_text(tensors, sizes, metadata, checksums);
  const std::string own = checksum_text(xxh64(header.data(), header.size()));
  // skips the key's closing quote, the colon and the opening quote
  header.replace(header.find(header_key) + sizeof header_key + 2, checksum_digits, own);
  file.go_back_to(length_bytes);
  file.write(header.data(), header.size());
  file.commit();
}

const char* safetensors_dtype(LoopDType type) {
  switch (type) {
    case LOOP_F32:
      return "F32";
    case LOOP_BF16:
      return "BF16";
    case LOOP_F64:
      return "F64";
    case LOOP_I32:
      return "I32";
    case LOOP_F16:
      return "F16";
  }
  throw Error("INTERNAL", "safetensors", "unknown dtype " + std::to_string(int(type)));
}

size_t first_not_finite(LoopDType type, const void* values, size_t count) {
  switch (type) {
    case LOOP_F32:
      return first_with_exponent<uint32_t>(0x7F800000, values, count);
    case LOOP_BF16:
      return first_with_exponent<uint16_t>(0x7F80, values, count);
    case LOOP_F16:
      return first_with_exponent<uint16_t>(0x7C00, values, count);
    case LOOP_F64:
      return first_with_exponent<uint64_t>(0x7FF0000000000000, values, count);
    case LOOP_I32:
      break;
  }
  throw Error("INTERNAL", "safetensors", "not a floating-point dtype");
}

}  // namespace looplm
