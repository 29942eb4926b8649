"""The sections of a manifest, one file each.

A field with a default is missing in older manifests of the same version; the default describes such a model.
"""
