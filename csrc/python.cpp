// Checks a module's layers and collects their parameters, in a fifth of the time of _plain_parameters in
// wae_kernels/nn.py.
//
// The functions of Python's stable ABI are declared here, so that a build does not need Python's headers. They are
// weak, so that a C++ program can load this library without Python. This code keeps borrowed references, so nn.py does
// not use it in a Python without a global interpreter lock.

#include <array>
#include <cstddef>
#include <utility>

extern "C" {
struct PyObject {  // the layout that the stable ABI guarantees
  std::ptrdiff_t references;
  PyObject* type;
};
struct PyMethodDef {
  const char* name;
  PyObject* (*function)(PyObject*, PyObject* const*, std::ptrdiff_t);
  int flags;
  const char* documentation;
};
#define WAE_PYTHON __attribute__((weak))
extern WAE_PYTHON PyObject PyDict_Type;
WAE_PYTHON void Py_DecRef(PyObject*);
WAE_PYTHON void Py_IncRef(PyObject*);
WAE_PYTHON PyObject* PyBool_FromLong(long);
WAE_PYTHON PyObject* PyCFunction_NewEx(PyMethodDef*, PyObject*, PyObject*);
WAE_PYTHON PyObject* PyDict_GetItemWithError(PyObject*, PyObject*);  // borrowed; null: none, or an error
WAE_PYTHON void PyErr_Clear();
WAE_PYTHON PyObject* PyObject_GenericGetDict(PyObject*, void*);
WAE_PYTHON int PyObject_IsTrue(PyObject*);
WAE_PYTHON int PyObject_RichCompareBool(PyObject*, PyObject*, int);
WAE_PYTHON PyObject* PyTuple_GetItem(PyObject*, std::ptrdiff_t);  // borrowed
WAE_PYTHON PyObject* PyTuple_New(std::ptrdiff_t);
WAE_PYTHON int PyTuple_SetItem(PyObject*, std::ptrdiff_t, PyObject*);  // takes the reference
WAE_PYTHON std::ptrdiff_t PyTuple_Size(PyObject*);
WAE_PYTHON PyObject* PyUnicode_InternFromString(const char*);
}

namespace wae {
namespace {

// Owns a reference and releases it in its destructor.
class Owned {
 public:
  explicit Owned(PyObject* object) : object_(object) {}
  Owned(const Owned&) = delete;
  ~Owned() {
    if (object_ != nullptr) Py_DecRef(object_);
  }
  PyObject* get() const { return object_; }
  PyObject* release() { return std::exchange(object_, nullptr); }

 private:
  PyObject* object_;
};

template <size_t kCount>
std::array<PyObject*, kCount> names(const char* const (&texts)[kCount]) {
  std::array<PyObject*, kCount> objects;
  for (size_t i = 0; i < kCount; ++i) objects[i] = PyUnicode_InternFromString(texts[i]);
  return objects;
}

// Whether a == b. Holds a reference to `a`: the comparison may run code that removes it from where it was borrowed.
bool equal(PyObject* a, PyObject* b) {
  constexpr int kEqual = 2;  // Py_EQ
  if (a == b) return true;
  Py_IncRef(a);
  const Owned held(a);
  return PyObject_RichCompareBool(a, b, kEqual) == 1;
}

// Whether this is a dict and not an instance of a subclass, which might look up its items in another way.
bool is_plain_dict(PyObject* object) { return object != nullptr && object->type == &PyDict_Type; }

// Whether a layer with these variables is as its constructor made it: with this geometry, no hooks, and no attributes of
// its own that hide its methods or parameters.
bool as_made(PyObject* variables, PyObject* geometry) {
  static const auto kGeometry =
      names({"kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"});
  static const auto kHooks =
      names({"_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"});
  static const auto kHiding = names({"forward", "_conv_forward", "weight", "bias"});
  for (size_t i = 0; i < kGeometry.size(); ++i) {
    PyObject* const now = PyDict_GetItemWithError(variables, kGeometry[i]);
    if (now == nullptr || !equal(now, PyTuple_GetItem(geometry, static_cast<std::ptrdiff_t>(i))))
      return false;
  }
  for (PyObject* name : kHooks) {
    PyObject* const hooks = PyDict_GetItemWithError(variables, name);
    if (hooks == nullptr || PyObject_IsTrue(hooks) != 0) return false;
  }
  for (PyObject* name : kHiding) {
    if (PyDict_GetItemWithError(variables, name) != nullptr) return false;
  }
  return true;
}

// Puts the weight and the bias of a layer with these variables into `tuple`; false if they are not of this type.
bool put_tensors(PyObject* variables, PyObject* type, PyObject* tuple, std::ptrdiff_t at) {
  static const auto kNames = names({"_parameters", "weight", "bias"});
  PyObject* const parameters = PyDict_GetItemWithError(variables, kNames[0]);
  if (!is_plain_dict(parameters)) return false;
  for (std::ptrdiff_t i = 0; i < 2; ++i) {
    PyObject* const tensor = PyDict_GetItemWithError(parameters, kNames[1 + i]);
    if (tensor == nullptr || tensor->type != type) return false;
    Py_IncRef(tensor);
    if (PyTuple_SetItem(tuple, at + i, tensor) != 0) return false;
  }
  return true;
}

// A tuple of the images, then the layers' weights and biases; null if a layer is not as its constructor made it, or has
// tensors of another type.
PyObject* inputs_of(PyObject* modules, PyObject* layers, PyObject* type, PyObject* images) {
  const std::ptrdiff_t first = PyTuple_Size(images), count = PyTuple_Size(layers);
  Owned inputs(PyTuple_New(first + 2 * count));
  if (inputs.get() == nullptr || !is_plain_dict(modules)) return nullptr;
  for (std::ptrdiff_t i = 0; i < first; ++i) {
    PyObject* const image = PyTuple_GetItem(images, i);
    Py_IncRef(image);
    if (PyTuple_SetItem(inputs.get(), i, image) != 0) return nullptr;
  }
  for (std::ptrdiff_t i = 0; i < count; ++i) {
    PyObject* const row = PyTuple_GetItem(layers, i);  // name, type, geometry
    PyObject* const layer = PyDict_GetItemWithError(modules, PyTuple_GetItem(row, 0));
    if (layer == nullptr || layer->type != PyTuple_GetItem(row, 1)) return nullptr;
    const Owned variables(PyObject_GenericGetDict(layer, nullptr));
    if (variables.get() == nullptr || !as_made(variables.get(), PyTuple_GetItem(row, 2)) ||
        !put_tensors(variables.get(), type, inputs.get(), first + 2 * i)) {
      return nullptr;
    }
  }
  return inputs.release();
}

// inputs_of() as a Python function, which returns False instead of null.
PyObject* call_inputs_of(PyObject*, PyObject* const* arguments, std::ptrdiff_t) {
  if (PyObject* const inputs = inputs_of(arguments[0], arguments[1], arguments[2], arguments[3]))
    return inputs;
  PyErr_Clear();
  return PyBool_FromLong(0);
}

}  // namespace
}  // namespace wae

// Returns the function above as a Python object. wae_kernels/nn.py calls this only in a CPython with a global
// interpreter lock.
extern "C" __attribute__((visibility("default"))) PyObject* wae_python_inputs_of() {
  static PyMethodDef method{"inputs_of", wae::call_inputs_of, 0x80, nullptr};  // METH_FASTCALL
  return PyCFunction_NewEx(&method, nullptr, nullptr);
}
