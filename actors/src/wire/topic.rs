//! The topics of the native dialect and of Azure, parsed and built in one place.
